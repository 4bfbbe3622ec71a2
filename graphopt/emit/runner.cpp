// Runs the operators of a graph one after the other, as its generated Python does, without Python between them.
//
// Numbers that differ from call to call, sizes mostly, come behind the inputs, and stand in registers too.
//
// A value stands in a register from the operator that makes it to the last one that reads it, and is given up right
// after that one. Operators are called as torch's Python binding calls them: boxed, through the dispatcher, with
// constants converted by the binding's own function, once.

#include <cstring>
#include <memory>
#include <vector>

#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <pybind11/pybind11.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

namespace py = pybind11;

// exported by torch/csrc/jit/python/pybind_utils.h, which takes long to compile
namespace torch::jit {
c10::IValue toIValue(py::handle, const c10::TypePtr&, std::optional<int32_t>);
class ToIValueAllowNumbersAsTensors {
 public:
  explicit ToIValueAllowNumbersAsTensors(bool enable);
  ~ToIValueAllowNumbersAsTensors();

 private:
  bool old_;
};
}  // namespace torch::jit

namespace {

using c10::IValue;

constexpr int NOWHERE = -1;

enum class Source { Constant, Number, NumberRegister, Register, LastRead, Registers };

// A number where a tensor is wanted: the binding makes a tensor of it for each call, which takes memory meanwhile.
struct Number {
  at::ScalarType type = at::ScalarType::Double;
  char bytes[16] = {};
};

struct Argument {
  Source source;
  int place = NOWHERE;  // of a register
  IValue constant;
  Number number;
  std::vector<int> places;  // of a list's elements; NOWHERE is none
  c10::TypePtr element;     // of a list
};

struct Call {
  c10::OperatorHandle op;
  std::vector<Argument> arguments;
  std::vector<std::vector<int>> results;  // the registers of each
  std::vector<int> done;                  // registers given up behind it, if they are not yet
  bool is_native;
};

struct Part {  // of a register that holds a list
  int list, position, place;
  std::vector<int> done;
};

struct PythonResult {
  std::vector<int> path;  // into nested tuples
  int place;
};

struct PythonArgument {  // a register, or a list of them, or a constant
  int place = NOWHERE;
  py::object constant;
  std::vector<int> places;
};

struct PythonCall {  // of a function that is no operator
  py::object function, kwargs;
  std::vector<PythonArgument> arguments;
  std::vector<PythonResult> results;
  std::vector<int> done;
};

struct Step {
  int call = NOWHERE, part = NOWHERE, python = NOWHERE;
};

struct Program {
  size_t registers;
  std::vector<int> inputs;
  std::vector<bool> are_numbers;  // of inputs: a fraction in the place of a tensor is Python's affair
  std::vector<std::pair<int, IValue>> constants;
  std::vector<Call> calls;
  std::vector<Part> parts;
  std::vector<PythonCall> pythons;
  std::vector<Step> steps;
  std::vector<int> outputs;  // NOWHERE: None
};

std::vector<int> ints(py::handle list) {
  std::vector<int> found;
  for (auto item : list) found.push_back(item.cast<int>());
  return found;
}

Number number_of(const IValue& value) {
  Number number{value.isInt() ? at::ScalarType::Long : at::ScalarType::Double};
  const int64_t whole = value.isInt() ? value.toInt() : 0;
  const double fraction = value.isInt() ? 0.0 : value.toDouble();
  std::memcpy(number.bytes, value.isInt() ? static_cast<const void*>(&whole) : &fraction, 8);
  return number;
}

at::Tensor tensor_of(const Number& number) {
  auto made = at::detail::empty_cpu({}, number.type);
  std::memcpy(made.mutable_data_ptr(), number.bytes, made.itemsize());
  made.unsafeGetTensorImpl()->set_wrapped_number(true);
  return made;
}

Argument read_argument(py::tuple given, const c10::Argument& wanted) {
  const auto kind = given[0].cast<std::string>();
  if (kind == "default") return {Source::Constant, NOWHERE, *wanted.default_value()};
  if (kind == "register") return {Source::Register, given[1].cast<int>()};
  if (kind == "number") return {Source::NumberRegister, given[1].cast<int>()};
  if (kind == "last") return {Source::LastRead, given[1].cast<int>()};
  if (kind == "registers") {
    auto type = wanted.type();
    if (type->kind() == c10::TypeKind::OptionalType) type = type->castRaw<c10::OptionalType>()->getElementType();
    return {Source::Registers, NOWHERE, {}, {}, ints(given[1]), type->castRaw<c10::ListType>()->getElementType()};
  }
  torch::jit::ToIValueAllowNumbersAsTensors allowed(true);
  IValue constant = torch::jit::toIValue(given[1], wanted.real_type(), wanted.N());
  if (!constant.isTensor()) return {Source::Constant, NOWHERE, std::move(constant)};
  Number number{constant.toTensor().scalar_type()};
  std::memcpy(number.bytes, constant.toTensor().const_data_ptr(), constant.toTensor().itemsize());
  return {Source::Number, NOWHERE, {}, number};
}

Call read_call(py::tuple given) {
  const auto name = given[0].cast<std::string>(), overload = given[1].cast<std::string>();
  Call call{c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), overload.c_str())};
  const auto& wanted = call.op.schema().arguments();
  size_t position = 0;
  for (auto item : given[2]) call.arguments.push_back(read_argument(item.cast<py::tuple>(), wanted.at(position++)));
  for (auto item : given[3]) call.results.push_back(ints(item));
  call.done = ints(given[4]);
  call.is_native = name.rfind("aten::", 0) == 0;
  return call;
}

PythonCall read_python(py::tuple given) {
  PythonCall call{given[0], given[1]};
  for (auto item : given[2]) {
    auto parts = item.cast<py::tuple>();
    call.arguments.push_back({parts[0].cast<int>(), parts[1], ints(parts[2])});
  }
  for (auto item : given[3]) {
    auto pair = item.cast<py::tuple>();
    call.results.push_back({ints(pair[0]), pair[1].cast<int>()});
  }
  call.done = ints(given[4]);
  return call;
}

void read_step(Program& program, py::tuple step) {
  const auto kind = step[0].cast<std::string>();
  Step read;
  if (kind == "call") {
    read.call = static_cast<int>(program.calls.size());
    program.calls.push_back(read_call(step[1]));
  } else if (kind == "python") {
    read.python = static_cast<int>(program.pythons.size());
    program.pythons.push_back(read_python(step[1]));
  } else {
    read.part = static_cast<int>(program.parts.size());
    auto part = step[1].cast<py::tuple>();
    program.parts.push_back({part[0].cast<int>(), part[1].cast<int>(), part[2].cast<int>(), ints(part[3])});
  }
  program.steps.push_back(read);
}

std::unique_ptr<Program> read_program(py::dict given) {
  auto program = std::make_unique<Program>();
  program->registers = given["registers"].cast<size_t>();
  program->inputs = ints(given["inputs"]);
  program->outputs = ints(given["outputs"]);
  for (auto item : given["are_numbers"]) program->are_numbers.push_back(item.cast<bool>());
  for (auto item : given["constants"]) {
    auto pair = item.cast<py::tuple>();
    program->constants.emplace_back(pair[0].cast<int>(), THPVariable_Unpack(py::object(pair[1]).ptr()));
  }
  for (auto item : given["steps"]) read_step(*program, item.cast<py::tuple>());
  return program;
}

IValue value_of(const Argument& argument, std::vector<IValue>& registers) {
  switch (argument.source) {
    case Source::Constant:
      return argument.constant;
    case Source::Number:
      return tensor_of(argument.number);
    case Source::NumberRegister:
      return tensor_of(number_of(registers[argument.place]));
    case Source::Register:
      return registers[argument.place];
    case Source::LastRead:
      return std::move(registers[argument.place]);
    case Source::Registers:
      break;
  }
  const auto kind = argument.element->kind();
  if (kind == c10::TypeKind::IntType || kind == c10::TypeKind::SymIntType) {
    c10::List<int64_t> numbers;
    numbers.reserve(argument.places.size());
    for (int place : argument.places) numbers.push_back(registers[place].toInt());
    return numbers;
  }
  c10::impl::GenericList list(argument.element);
  list.reserve(argument.places.size());
  for (int place : argument.places) list.push_back(place == NOWHERE ? IValue() : registers[place]);
  return list;
}

void run_call(const Call& call, std::vector<IValue>& registers, torch::jit::Stack& stack) {
  for (const auto& argument : call.arguments) stack.push_back(value_of(argument, registers));
  if (call.is_native) {
    // all that it computes is below autograd, which records nothing here
    at::AutoDispatchBelowAutograd guard;
    call.op.callBoxed(&stack);
  } else {
    call.op.callBoxed(&stack);
  }
  for (size_t i = 0; i < call.results.size(); i++) {
    const auto& places = call.results[i];
    for (size_t j = 0; j < places.size(); j++) {
      if (j + 1 == places.size()) registers[places[j]] = std::move(stack[i]);
      else registers[places[j]] = stack[i];
    }
  }
  stack.clear();
  for (int place : call.done) registers[place] = IValue();
}

[[noreturn]] void throw_python_error() {
  python_error error;
  error.persist();
  throw error;
}

py::object in_python(const IValue& value) {
  if (value.isInt()) return py::int_(value.toInt());
  if (value.isDouble()) return py::float_(value.toDouble());
  return py::reinterpret_steal<py::object>(THPVariable_Wrap(value.toTensor()));
}

void run_python(const PythonCall& call, std::vector<IValue>& registers) {
  py::gil_scoped_acquire acquired;
  py::tuple arguments(call.arguments.size());
  for (size_t i = 0; i < call.arguments.size(); i++) {
    const auto& [place, constant, places] = call.arguments[i];
    if (place != NOWHERE) {
      arguments[i] = in_python(registers[place]);
    } else if (!places.empty()) {
      py::list items;
      for (int each : places) items.append(in_python(registers[each]));
      arguments[i] = items;
    } else {
      arguments[i] = constant;
    }
  }
  auto made = py::reinterpret_steal<py::object>(
      PyObject_Call(call.function.ptr(), arguments.ptr(), call.kwargs.ptr()));
  if (!made) throw_python_error();
  for (const auto& result : call.results) {
    PyObject* item = made.ptr();
    for (int position : result.path) item = PyTuple_GetItem(item, position);
    if (!item) throw_python_error();
    if (item != Py_None && !THPVariable_Check(item)) {
      PyErr_SetString(PyExc_TypeError, "a function of the graph gives no tensor where the graph has one");
      throw_python_error();
    }
    registers[result.place] = item == Py_None ? at::Tensor() : THPVariable_Unpack(item);
  }
  for (int place : call.done) registers[place] = IValue();
}

// Which step this thread runs, for the message where that fails.
thread_local size_t running = 0;

void run_steps(const Program& program, std::vector<IValue>& registers) {
  torch::jit::Stack stack;
  for (size_t i = 0; i < program.steps.size(); i++) {
    const auto& step = program.steps[i];
    running = i;
    if (step.call != NOWHERE) {
      run_call(program.calls[step.call], registers, stack);
      continue;
    }
    if (step.python != NOWHERE) {
      run_python(program.pythons[step.python], registers);
      continue;
    }
    const auto& part = program.parts[step.part];
    registers[part.place] = registers[part.list].toListRef()[part.position];
    for (int place : part.done) registers[place] = IValue();
  }
}

PyObject* run(const Program& program, PyObject* arguments) {
  const auto count = static_cast<Py_ssize_t>(program.inputs.size());
  if (!PyList_CheckExact(arguments) || PyList_GET_SIZE(arguments) != count) Py_RETURN_NOTIMPLEMENTED;
  for (Py_ssize_t i = 0; i < count; i++) {
    auto* item = PyList_GET_ITEM(arguments, i);
    const bool is_number = PyLong_CheckExact(item) || (program.are_numbers[i] && PyFloat_CheckExact(item));
    if (program.inputs[i] != NOWHERE && !THPVariable_CheckExact(item) && !is_number) Py_RETURN_NOTIMPLEMENTED;
  }
  std::vector<IValue> registers(program.registers);
  for (const auto& [place, constant] : program.constants) registers[place] = constant;
  for (Py_ssize_t i = 0; i < count; i++) {
    if (program.inputs[i] == NOWHERE) continue;
    auto* item = PyList_GET_ITEM(arguments, i);
    auto& given = registers[program.inputs[i]];
    if (PyLong_CheckExact(item)) given = static_cast<int64_t>(PyLong_AsLongLong(item));
    else if (PyFloat_CheckExact(item)) given = PyFloat_AS_DOUBLE(item);
    else given = THPVariable_Unpack(item);
  }
  if (PyList_SetSlice(arguments, 0, count, nullptr)) return nullptr;
  {
    py::gil_scoped_release released;
    run_steps(program, registers);
  }
  py::tuple results(program.outputs.size());
  for (size_t i = 0; i < program.outputs.size(); i++) {
    const int place = program.outputs[i];
    results[i] = place == NOWHERE ? py::none() : in_python(registers[place]);
  }
  return results.release().ptr();
}

}  // namespace

extern "C" {

void* graphopt_read_program(PyObject* given) {
  HANDLE_TH_ERRORS
  return read_program(py::reinterpret_borrow<py::dict>(given)).release();
  END_HANDLE_TH_ERRORS
}

PyObject* graphopt_run_program(const void* program, PyObject* arguments) {
  HANDLE_TH_ERRORS
  return run(*static_cast<const Program*>(program), arguments);
  END_HANDLE_TH_ERRORS
}

size_t graphopt_failed_step() {
  return running;
}

void graphopt_drop_program(void* program) {
  delete static_cast<Program*>(program);
}
}
