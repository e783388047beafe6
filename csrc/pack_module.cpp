#define PY_SSIZE_T_CLEAN
#include <Python.h>
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "skytrain._pack", nullptr, -1, nullptr};
PyMODINIT_FUNC PyInit__pack() { return PyModule_Create(&module); }
