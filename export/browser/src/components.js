// The objects of one class: what keras_seg.instances gives.

// 4-connected components of the pixels whose probability exceeds the threshold. Returns {labels: Int32Array, 0 for no
// object and k > 0 for the k-th object met row by row, count}.
export function components(probability, width, height, threshold) {
  const labels = new Int32Array(width * height);
  const parents = [0];
  const root = (k) => {
    while (parents[k] !== k) k = parents[k] = parents[parents[k]];
    return k;
  };
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      if (!(probability[i] > threshold)) continue;
      const left = x > 0 ? labels[i - 1] : 0;
      const above = y > 0 ? labels[i - width] : 0;
      if (left && above) {
        const [a, b] = [root(left), root(above)];
        labels[i] = Math.min(a, b);
        parents[Math.max(a, b)] = labels[i];
      } else if (left || above) {
        labels[i] = left || above;
      } else {
        labels[i] = parents.push(parents.length) - 1;
      }
    }
  }
  // A root is the least of its set, hence met first: numbering roots in their order numbers objects row by row.
  const numbers = new Int32Array(parents.length);
  let count = 0;
  for (let k = 1; k < parents.length; k++) numbers[k] = parents[k] === k ? ++count : numbers[root(k)];
  for (let i = 0; i < labels.length; i++) labels[i] = numbers[labels[i]];
  return { labels, count };
}
