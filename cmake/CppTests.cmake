# dormant_tests: every csrc/**/NAME_test.cpp in one GoogleTest program, each test case known to ctest.
# GoogleTest is compiled from its sources; `make build` finds or fetches them (tools/googletest_sources.sh).
find_path(
  DORMANT_GOOGLETEST_DIR src/gtest-all.cc
  HINTS ENV DORMANT_GOOGLETEST_DIR
  PATHS /usr/src/googletest/googletest /usr/src/gtest
  DOC "Folder of the GoogleTest sources that holds include/ and src/")
if(NOT DORMANT_GOOGLETEST_DIR)
  message(
    FATAL_ERROR
      "dormant: the C++ tests need the GoogleTest sources and none were found. Install the Debian package googletest, or "
      "set DORMANT_GOOGLETEST_DIR to the folder that holds src/gtest-all.cc, or configure with -DDORMANT_TESTS=OFF.")
endif()
find_package(Threads REQUIRED)
add_library(googletest STATIC "${DORMANT_GOOGLETEST_DIR}/src/gtest-all.cc")
target_include_directories(
  googletest SYSTEM PUBLIC "${DORMANT_GOOGLETEST_DIR}/include" PRIVATE "${DORMANT_GOOGLETEST_DIR}")
target_link_libraries(googletest PUBLIC Threads::Threads)

if(_tests)
  # The tests reach internals that libdormant.so hides, so they are linked from its objects, not from the library: a
  # second copy of the registrations would be an error.
  add_executable(dormant_tests ${_tests} $<TARGET_OBJECTS:dormant> "${DORMANT_GOOGLETEST_DIR}/src/gtest_main.cc")
  target_include_directories(dormant_tests PRIVATE include csrc)
  target_link_libraries(dormant_tests PRIVATE dormant::torch googletest nlohmann_json OpenMP::OpenMP_CXX)
  # Its table of cases is one that the Python tests run, too.
  set_source_files_properties(csrc/load_cases_test.cpp PROPERTIES COMPILE_DEFINITIONS
                                                                  DORMANT_SOURCE_DIR="${CMAKE_CURRENT_SOURCE_DIR}")
  dormant_compile_options(dormant_tests)
  include(GoogleTest)
  gtest_discover_tests(dormant_tests TEST_FILTER "-*Thread*" DISCOVERY_TIMEOUT 60 PROPERTIES TIMEOUT 120)
  gtest_discover_tests(dormant_tests TEST_FILTER "*Thread*" TEST_LIST dormant_threaded DISCOVERY_TIMEOUT 60
                       PROPERTIES TIMEOUT 120 LABELS threaded)
endif()
