# dormant._C: the bindings, linked to libdormant.so, which is installed beside it in lib/.
# They use the pybind11 headers inside torch: the extension shares pybind11's internals with libtorch_python, and
# another pybind11 release may have another internals version, which would hide torch's registered types.
file(GLOB _bindings CONFIGURE_DEPENDS csrc/bindings/*.cpp)
if(NOT _bindings)
  return()
endif()
Python_add_library(_C MODULE WITH_SOABI ${_bindings})
target_include_directories(_C PRIVATE csrc)
target_compile_definitions(_C PRIVATE TORCH_EXTENSION_NAME=_C)
find_library(DORMANT_TORCH_PYTHON torch_python PATHS "${DORMANT_TORCH_DIR}/lib" NO_DEFAULT_PATH REQUIRED)
target_link_libraries(_C PRIVATE dormant "${DORMANT_TORCH_PYTHON}")
dormant_compile_options(_C)
