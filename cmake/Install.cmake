# The installed package is one folder that both Python and CMake can use, and that can hold builds for several releases of
# torch (tools/build_wheel.py):
#   _builds/TORCH/    what belongs to one release: _C*.so, libdormant.so, dormantTargets.cmake
#   include/dormant/, share/cmake/dormant/
# scikit-build-core installs it into the wheel's dormant/, `make build` into python/dormant/.
include(CMakePackageConfigHelpers)
set(DORMANT_BUILD_DIR _builds/${DORMANT_TORCH_VERSION})
set(DORMANT_CMAKE_DIR share/cmake/dormant)

# torch/lib lies beside dormant/ in site-packages. Where it does not (a checkout), `import torch` has loaded it before.
set_target_properties(dormant PROPERTIES INSTALL_RPATH "$ORIGIN/../../../torch/lib")
install(
  TARGETS dormant
  EXPORT dormantTargets
  LIBRARY DESTINATION ${DORMANT_BUILD_DIR})
install(DIRECTORY include/dormant DESTINATION include)
install(EXPORT dormantTargets NAMESPACE dormant:: DESTINATION ${DORMANT_BUILD_DIR})
configure_package_config_file(cmake/dormantConfig.cmake.in dormantConfig.cmake INSTALL_DESTINATION ${DORMANT_CMAKE_DIR})
write_basic_package_version_file(dormantConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/dormantConfig.cmake" "${CMAKE_CURRENT_BINARY_DIR}/dormantConfigVersion.cmake"
              cmake/DormantTorch.cmake DESTINATION ${DORMANT_CMAKE_DIR})

if(TARGET _C)
  set_target_properties(_C PROPERTIES INSTALL_RPATH "$ORIGIN;$ORIGIN/../../../torch/lib")
  install(TARGETS _C LIBRARY DESTINATION ${DORMANT_BUILD_DIR})
endif()

# For a build that must not touch the checkout's package (sanitizers, another torch): cmake --install DIR --component
# python_sources puts the Python files there too.
install(
  DIRECTORY python/dormant/
  DESTINATION .
  COMPONENT python_sources
  EXCLUDE_FROM_ALL
  FILES_MATCHING
  PATTERN "*.py"
  PATTERN "*.pyi"
  PATTERN "py.typed"
  PATTERN "__pycache__" EXCLUDE
  PATTERN "include" EXCLUDE
  PATTERN "_builds" EXCLUDE
  PATTERN "share" EXCLUDE)
install(
  DIRECTORY python/dormant_command/
  DESTINATION ../dormant_command
  COMPONENT python_sources
  EXCLUDE_FROM_ALL
  FILES_MATCHING
  PATTERN "*.py"
  PATTERN "py.typed"
  PATTERN "__pycache__" EXCLUDE)
