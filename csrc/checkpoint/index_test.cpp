#include "checkpoint/index.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <ostream>
#include <string>
#include <vector>

#include "checkpoint/scratch_folder.h"

namespace dormant::checkpoint {
namespace {

std::string mapping(const std::string& file) { return R"({"weight_map":{"w":")" + file + "\"}}"; }

struct Refusal {
  const char* name;
  std::string document;
  const char* says;
};

void PrintTo(const Refusal& refusal, std::ostream* out) { *out << refusal.name; }

std::vector<Refusal> refusals() {
  return {
      {"Empty", "", "the index starts with nothing"},
      {"Array", "[]", "starts with '['"},
      {"NotJson", "{]", "is not JSON at byte"},
      {"NoWeightMap", R"({"metadata":{}})", "\"weight_map\" is missing"},
      {"WeightMapIsAnArray", R"({"weight_map":[]})", "'weight_map' is an array"},
      {"WeightMapIsNull", R"({"weight_map":null})", "'weight_map' is null"},
      {"MetadataIsAString", R"({"metadata":"x","weight_map":{}})", "'metadata' is a string"},
      {"NumberForAFile", R"({"weight_map":{"w":1}})", "tensor 'w' has 1 before byte 21"},
      {"ListOfFiles", R"({"weight_map":{"w":["a","b"]}})", "tensor 'w' has an array"},
      {"ObjectForAFile", R"({"weight_map":{"w":{}}})", "tensor 'w' has an object"},
      {"TensorTwice", R"({"weight_map":{"w":"a","w":"b"}})", "names 'w' twice"},
      {"WeightMapTwice", R"({"weight_map":{},"weight_map":{}})", "names 'weight_map' twice"},
      {"EmptyName", R"({"weight_map":{"":"a"}})", "a tensor without a name"},
      {"AbsolutePath", mapping("/etc/passwd"), "'/etc/passwd' before byte 32: an absolute path"},
      {"PathOutOfTheFolder", mapping("../x"),
       "'../x' before byte 25: a path that leaves the folder"},
      {"PathOutOfTheFolderInside", mapping("a/../../x"), "a path that leaves the folder"},
      {"ParentAlone", mapping(".."), "a path that leaves the folder"},
      {"EscapedPath", mapping("\\u002e\\u002e/x"), "a path that leaves the folder"},
      {"EmptyPath", mapping(""), "an empty path"},
      {"PathWithAZero", mapping("a\\u0000b"), "a path with a null character"},
      {"SamePathAnotherWay", mapping("./a"), "a path that is not normalized"},
      {"DoubleSlash", mapping("a//b"), "a path that is not normalized"},
      {"TrailingSlash", mapping("a/"), "a path that is not normalized"},
      {"Deep", R"({"metadata":)" + std::string(100000, '['), "'metadata' is an array"},
      {"FlatAbsolutePath", R"({"v":"a","w":"/etc/passwd"})", "'/etc/passwd' before byte 26"},
      {"FlatPathOutOfTheFolder", R"({"w":"../x","v":"a"})", "a path that leaves the folder"},
      {"FlatEmptyName", R"({"":"a"})", "a tensor without a name"},
      {"FlatTwice", R"({"w":"a","w":"b"})", "names 'w' twice"},
      {"FlatWithANumber", R"({"w":"a","v":1})", "\"weight_map\" is missing"},
      {"FlatWithAnObject", R"({"w":"a","v":{"w":"b"}})", "\"weight_map\" is missing"},
      {"FlatWithAnArray", R"({"w":"a","v":["b"]})", "\"weight_map\" is missing"},
      {"FlatWithMetadata", R"({"w":"a","metadata":{}})", "\"weight_map\" is missing"},
      {"Nothing", "{}", "\"weight_map\" is missing"},
      {"DeepInside", R"({"metadata":{"a":)" + std::string(100000, '['), "nested deeper than 16"},
  };
}

class RefusedIndex : public testing::TestWithParam<Refusal> {};

TEST_P(RefusedIndex, IsAValueErrorThatSaysWhy) {
  const auto text =
      message_of<c10::ValueError>([&] { parse_index(GetParam().document, "m.index.json"); });
  EXPECT_TRUE(contains(text, "open_checkpoint: m.index.json: ")) << text;
  EXPECT_TRUE(contains(text, GetParam().says)) << text;
}

INSTANTIATE_TEST_SUITE_P(Index, RefusedIndex, testing::ValuesIn(refusals()),
                         [](const auto& info) { return info.param.name; });

TEST(Index, NamesFilesAndMetadata) {
  const auto index = parse_index(
      R"({"metadata":{"total_size":12,"n":[1.5,null,{"a":-1}]},"other":[1,"x",{"y":{}}],)"
      R"("weight_map":{"b":"sub/2.safetensors","a":"1.safetensors"}})",
      "i");
  EXPECT_EQ(index.files, (std::map<std::string, std::string>{{"a", "1.safetensors"},
                                                             {"b", "sub/2.safetensors"}}));
  EXPECT_EQ(index.metadata, R"({"n":[1.5,null,{"a":-1}],"total_size":12})");
  EXPECT_EQ(parse_index(R"({"weight_map":{}})", "i").metadata, "{}");
}

TEST(Index, IsTheMapAloneAsAccelerateWritesIt) {
  const auto index = parse_index(R"({"b":"sub/2.bin","a":"1.bin"})", "i");
  EXPECT_EQ(index.files, (std::map<std::string, std::string>{{"a", "1.bin"}, {"b", "sub/2.bin"}}));
  EXPECT_EQ(index.metadata, "{}");
}

TEST(Index, PathsAreThoseOfFilesBesideIt) {
  const ScratchFolder folder;
  folder.write("blob", "x");
  std::filesystem::create_symlink(folder.path("blob"), folder.path("a.bin"));
  const auto index = read_index(folder.write("i.json", mapping("a.bin")));
  EXPECT_EQ(index.files.at("w"), folder.path("a.bin"));
}

TEST(Index, AbsentFilesAreListed) {
  const ScratchFolder folder;
  folder.write("a", "x");
  const auto path = folder.write("i.json", R"({"weight_map":{"u":"a","v":"c","w":"b","x":"b"}})");
  const auto text = message_of<c10::ValueError>([&] { read_index(path); });
  EXPECT_TRUE(contains(text, path + ": 2 of 3 files are missing: 'b', 'c'.")) << text;
}

}  // namespace
}  // namespace dormant::checkpoint
