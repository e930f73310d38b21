# Each benchmarks/NAME.cpp is a program NAME, built on request only: ninja -C build NAME.
file(GLOB _benchmarks CONFIGURE_DEPENDS benchmarks/*.cpp)
foreach(_source IN LISTS _benchmarks)
  cmake_path(GET _source STEM _name)
  # From the objects, as the tests are: benchmarks measure what libdormant.so hides.
  add_executable(${_name} EXCLUDE_FROM_ALL ${_source} $<TARGET_OBJECTS:dormant>)
  target_include_directories(${_name} PRIVATE include csrc)
  target_link_libraries(${_name} PRIVATE dormant::torch nlohmann_json OpenMP::OpenMP_CXX)
  dormant_compile_options(${_name})
endforeach()
