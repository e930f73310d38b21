# The JSON headers: from the PyPI package nlohmann_json (requirements/build.txt), or an installed copy.
if(Python_EXECUTABLE)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c "import sysconfig, pathlib, importlib.metadata as m
d = m.distribution('nlohmann_json')
print(next(pathlib.Path(d.locate_file(f)).resolve().parents[1] for f in d.files if f.name == 'json.hpp'))"
    OUTPUT_VARIABLE _json_from_pypi
    OUTPUT_STRIP_TRAILING_WHITESPACE
    ERROR_QUIET)
endif()
find_path(NLOHMANN_JSON_INCLUDE_DIR nlohmann/json.hpp HINTS ${_json_from_pypi})
if(NOT NLOHMANN_JSON_INCLUDE_DIR)
  message(
    FATAL_ERROR
      "dormant: nlohmann/json.hpp not found. Install it with `pip install nlohmann_json==3.12.0`, as the system package "
      "nlohmann-json3-dev, or set NLOHMANN_JSON_INCLUDE_DIR to the folder that holds nlohmann/.")
endif()
add_library(nlohmann_json INTERFACE)
target_include_directories(nlohmann_json SYSTEM INTERFACE "${NLOHMANN_JSON_INCLUDE_DIR}")
