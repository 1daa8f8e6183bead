// Runs an exported model on image files: a program that knows nothing of keras_seg but the signature of its SavedModels.
//
//   run_saved_model MODEL_FOLDER OUTPUT_FOLDER IMAGE...
//
// Sends the bytes of the JPEG or PNG files to the signature "encoded_images" in one request and writes every output to
// OUTPUT_FOLDER/<name>.npy. Prints one line for each: its name, type and shape.

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "tensorflow/cc/saved_model/loader.h"
#include "tensorflow/core/framework/tensor.h"
#include "tensorflow/core/public/session.h"

namespace {

constexpr char kSignature[] = "encoded_images";
constexpr char kInput[] = "image_bytes";
constexpr char kTag[] = "serve";  // of the graph that a SavedModel holds for inference

int Fail(const std::string& message) {
  std::cerr << "run_saved_model: " << message << std::endl;
  return 1;
}

bool ReadFile(const std::string& path, tensorflow::tstring* contents) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return false;
  const std::string read{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  *contents = read;
  return true;
}

// NumPy's name of a type; nullptr for those that no model gives.
const char* NumpyType(tensorflow::DataType type) {
  switch (type) {
    case tensorflow::DT_FLOAT: return "<f4";
    case tensorflow::DT_INT32: return "<i4";
    case tensorflow::DT_UINT8: return "|u1";
    default: return nullptr;
  }
}

// Version 1.0 of the .npy format: a magic string, the header's length, the header padded to 64 bytes, the numbers.
bool WriteNpy(const std::string& path, const tensorflow::Tensor& tensor) {
  const char* type = NumpyType(tensor.dtype());
  if (type == nullptr) return false;
  std::string shape;
  for (int axis = 0; axis < tensor.dims(); ++axis) shape += std::to_string(tensor.dim_size(axis)) + ",";
  std::string header =
      std::string("{'descr': '") + type + "', 'fortran_order': False, 'shape': (" + shape + "), }";
  constexpr size_t kBefore = 10;
  header.append((64 - (kBefore + header.size() + 1) % 64) % 64, ' ');
  header.push_back('\n');
  std::ofstream file(path, std::ios::binary);
  file.write("\x93NUMPY\x01\x00", 8);
  file.put(static_cast<char>(header.size() & 0xff)).put(static_cast<char>(header.size() >> 8));
  file << header;
  const auto bytes = tensor.tensor_data();
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  return static_cast<bool>(file);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) return Fail("give MODEL_FOLDER OUTPUT_FOLDER IMAGE...");
  const std::string folder = argv[1], output_folder = argv[2];
  if (!tensorflow::MaybeSavedModelDirectory(folder)) return Fail(folder + ": holds no SavedModel");

  tensorflow::SavedModelBundle model;
  absl::Status status = tensorflow::LoadSavedModel({}, {}, folder, {kTag}, &model);
  if (!status.ok()) return Fail(folder + ": " + status.ToString());
  const auto& signatures = model.GetSignatures();
  const auto found = signatures.find(kSignature);
  if (found == signatures.end()) return Fail(folder + ": has no signature " + kSignature);
  const auto input = found->second.inputs().find(kInput);
  if (input == found->second.inputs().end()) return Fail(folder + ": the signature has no input " + kInput);

  tensorflow::Tensor files(tensorflow::DT_STRING, tensorflow::TensorShape({argc - 3}));
  for (int n = 3; n < argc; ++n) {
    if (!ReadFile(argv[n], &files.vec<tensorflow::tstring>()(n - 3))) return Fail(std::string(argv[n]) + ": cannot be read");
  }

  std::vector<std::string> names, tensors;
  for (const auto& [name, info] : found->second.outputs()) {
    names.push_back(name);
    tensors.push_back(info.name());
  }
  std::vector<tensorflow::Tensor> outputs;
  status = model.session->Run({{input->second.name(), files}}, tensors, {}, &outputs);
  if (!status.ok()) return Fail(status.ToString());

  for (size_t n = 0; n < names.size(); ++n) {
    const std::string path = output_folder + "/" + names[n] + ".npy";
    if (!WriteNpy(path, outputs[n])) return Fail(path + ": cannot be written");
    std::cout << names[n] << " " << tensorflow::DataTypeString(outputs[n].dtype()) << " "
              << outputs[n].shape().DebugString() << std::endl;
  }
  return 0;
}
