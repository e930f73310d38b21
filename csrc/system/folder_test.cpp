#include "system/folder.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <fstream>
#include <string>
#include <system_error>
#include <vector>

#include "checkpoint/scratch_folder.h"

namespace dormant::system {
namespace {

TEST(Folder, HasTheNamesOfWhatIsInIt) {
  const checkpoint::ScratchFolder scratch;
  const std::string folder = scratch.path("");
  std::ofstream(folder + "/b.bin") << "b";
  std::ofstream(folder + "/.hidden") << "a";
  ASSERT_EQ(::mkdir((folder + "/inner").c_str(), 0700), 0);
  auto names = names_in(folder, "save");
  std::sort(names.begin(), names.end());
  EXPECT_EQ(names, (std::vector<std::string>{".hidden", "b.bin", "inner"}));
  EXPECT_TRUE(is_folder(folder + "/inner"));
  EXPECT_FALSE(is_file(folder + "/inner"));
  EXPECT_TRUE(is_file(folder + "/b.bin"));
  EXPECT_FALSE(is_folder(folder + "/b.bin"));
  EXPECT_FALSE(is_file(folder + "/none"));
}

TEST(Folder, ThatCannotBeReadIsNamedWithTheReason) {
  try {
    names_in("/nowhere/at all", "save");
    ADD_FAILURE() << "a folder that is not there was read";
  } catch (const std::system_error& error) {
    EXPECT_EQ(error.code().value(), ENOENT);
    EXPECT_NE(std::string(error.what()).find("save: reading the folder /nowhere/at all"),
              std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace dormant::system
