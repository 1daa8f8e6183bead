export async function runDetector() {
  throw new Error("not there yet");
}
