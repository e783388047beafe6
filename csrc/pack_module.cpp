// skytrain._pack: the packer for Python. This file sees Python's objects and checks them; pack.cpp takes pointers.
// Arrays come in by the buffer protocol, so that neither numpy nor torch is needed to build or import it.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstring>
#include <limits>
#include <new>

#include "pack.h"

namespace {

// A one-dimensional contiguous array of int64, held while this lives.
class Int64Array {
 public:
  ~Int64Array() {
    if (held_) PyBuffer_Release(&view_);
  }

  bool take(PyObject* object, const char* name, bool writable) {
    const int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
    if (PyObject_GetBuffer(object, &view_, flags) != 0) return false;
    held_ = true;
    // int64 is 'l' where long has 64 bits and 'q' where it has 32.
    const bool is_int64 = view_.itemsize == 8 && (!std::strcmp(view_.format, "l") || !std::strcmp(view_.format, "q"));
    if (view_.ndim == 1 && is_int64) return true;
    PyErr_Format(PyExc_TypeError, "%s: expected int64 [n], got format '%s' with %d dimensions", name, view_.format,
                 view_.ndim);
    return false;
  }

  int64_t* data() const { return static_cast<int64_t*>(view_.buf); }
  Py_ssize_t size() const { return view_.len / 8; }

 private:
  Py_buffer view_{};
  bool held_ = false;
};

// What pack.cpp relies on: without it, it would not end, or would overflow.
const char* fault(const Int64Array& lengths, const Int64Array& costs, const Int64Array& slots, long long ranks,
                  long long max_tokens) {
  const Py_ssize_t n = lengths.size();
  if (costs.size() != n || slots.size() != n) return "lengths, costs and slots differ in size";
  if (n < 1) return "there are no documents";
  constexpr long long most = std::numeric_limits<int32_t>::max();
  if (ranks < 1 || max_tokens < 1 || max_tokens > most) return "ranks and max_tokens must be from 1 to 2^31 - 1";
  // In the worst case every document has a row of its own.
  if (ranks > most - n) return "documents and ranks together must be below 2^31";
  int64_t total = 0;
  for (Py_ssize_t i = 0; i < n; ++i) {
    if (lengths.data()[i] < 1 || lengths.data()[i] > max_tokens) return "a length is outside 1..max_tokens";
    if (costs.data()[i] < 0 || __builtin_add_overflow(total, costs.data()[i], &total))
      return "costs must be 0 or more, and their sum must fit an int64";
  }
  return nullptr;
}

PyObject* pack_step(PyObject*, PyObject* args) {
  PyObject *lengths_object, *costs_object, *slots_object;
  long long ranks, max_tokens;
  if (!PyArg_ParseTuple(args, "OOLLO:pack_step", &lengths_object, &costs_object, &ranks, &max_tokens, &slots_object))
    return nullptr;
  Int64Array lengths, costs, slots;
  if (!lengths.take(lengths_object, "lengths", false) || !costs.take(costs_object, "costs", false) ||
      !slots.take(slots_object, "slots", true))
    return nullptr;
  if (const char* message = fault(lengths, costs, slots, ranks, max_tokens)) {
    PyErr_SetString(PyExc_ValueError, message);
    return nullptr;
  }
  bool out_of_memory = false;
  Py_BEGIN_ALLOW_THREADS;
  try {
    skytrain::pack_step(lengths.data(), costs.data(), lengths.size(), ranks, max_tokens, slots.data());
  } catch (const std::bad_alloc&) {
    out_of_memory = true;
  }
  Py_END_ALLOW_THREADS;
  if (out_of_memory) return PyErr_NoMemory();
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"pack_step", pack_step, METH_VARARGS,
     "pack_step(lengths, costs, ranks, max_tokens, slots): see csrc/pack.h; arrays are int64 [n], slots is written."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "skytrain._pack", nullptr, -1, methods};

}  // namespace

PyMODINIT_FUNC PyInit__pack() { return PyModule_Create(&module); }
