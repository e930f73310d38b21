# Finds the torch of the Python that builds, whatever it was built for, unless DORMANT_TORCH_DIR names the folder of one
# (it holds include/ and lib/). Gives the target dormant::torch and DORMANT_TORCH_VERSION (major.minor.patch).
include(DormantTorch)
if(DORMANT_PYTHON)
  find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module)
else()
  find_package(Python 3.10 COMPONENTS Interpreter)
endif()

if(NOT DORMANT_TORCH_DIR AND Python_EXECUTABLE)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c "import importlib.util; print(*importlib.util.find_spec('torch').submodule_search_locations)"
    OUTPUT_VARIABLE DORMANT_TORCH_DIR
    OUTPUT_STRIP_TRAILING_WHITESPACE
    ERROR_QUIET)
endif()
if(NOT EXISTS "${DORMANT_TORCH_DIR}/include/torch/headeronly/version.h")
  message(
    FATAL_ERROR
      "dormant: no torch of 2.11 to 2.15 in '${DORMANT_TORCH_DIR}'. Install one of them into the Python that builds "
      "(${Python_EXECUTABLE}; another one: -DPython_EXECUTABLE=...), or set DORMANT_TORCH_DIR to the folder of a libtorch.")
endif()
dormant_add_torch("${DORMANT_TORCH_DIR}")
set(DORMANT_TORCH_VERSION "${dormant_TORCH_FOUND_VERSION}")
if(DORMANT_TORCH_VERSION VERSION_LESS 2.11 OR DORMANT_TORCH_VERSION VERSION_GREATER_EQUAL 2.16)
  message(
    WARNING
      "dormant: building against torch ${DORMANT_TORCH_VERSION}; 2.11 to 2.15 are supported. Other releases may lack "
      "headers, or draw other random numbers. Install a supported torch, or run all tests before relying on this build.")
endif()
