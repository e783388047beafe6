// Registers the torch operations of skytrain::; importing the module is what loads them.
#include <Python.h>
#include <torch/library.h>

static PyModuleDef module = {PyModuleDef_HEAD_INIT, "skytrain._C", nullptr, -1, nullptr};
PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
