"""The reference of the Python interface: signatures and docstrings of all that is public."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

import graphopt
from docs.site.generated.markdown import code, linked, table

#: What users come to hold without a name of it in `graphopt`, by how they come to it.
HELD = {
    "model.graphopt": "graphopt.api.optimized.Optimized",
    "model.graphopt.report": "graphopt.report.data.Report",
    "model.graphopt.report.graphs": "graphopt.report.data.GraphReport",
    "model.graphopt.history": "graphopt.run.watch.measured_step.MeasuredStep",
    "plan.graphs": "graphopt.problem.plan.GraphPlan",
    "plan.checkpoints": "graphopt.problem.plan.Checkpoint",
    "plan.pieces": "graphopt.problem.pieces.Pieces",
    "estimate.formula": "graphopt.report.formula.Formula",
}
#: What such an object is called in front of its methods, where that is not the class's own name.
OWN = {"TrainStep": "step", "Optimized": "model.graphopt"}
#: Beside `graphopt.__all__`.
MORE_FUNCTIONS = ("graphopt.kernels.use",)
BACKEND = "graphopt.api.backend.graphopt_backend"


def api() -> str:
    """The whole reference but errors, which have a page of their own."""
    objects = {name: getattr(graphopt, name) for name in graphopt.__all__}
    classes = {name: each for name, each in objects.items() if inspect.isclass(each) and not is_error(each)}
    made = {name: each for name, each in classes.items() if is_option(each)}
    held = {name: each for name, each in classes.items() if name not in made}
    functions = {f"graphopt.{name}": each for name, each in objects.items() if inspect.isfunction(each)}
    functions |= {name: at(name) for name in MORE_FUNCTIONS}
    targets = {name.split(".")[-1]: f"#{anchor(name)}" for name in (*functions, *made, *held)}
    targets |= {name: f"errors.md#{name.lower()}" for name, each in objects.items() if is_error(each)}
    parts = ["## Functions", *(function(name, each, targets) for name, each in functions.items())]
    parts += ["## Options", *(option(name, each, targets) for name, each in made.items())]
    parts += ["## What you get", *(class_(name, each, targets) for name, each in held.items())]
    parts += [class_(at(path).__name__, at(path), targets, reached=how) for how, path in HELD.items()]
    parts += ["## The backend of torch.compile", words(at(BACKEND), targets)]
    return "\n\n".join(parts)


def is_error(each: object) -> bool:
    return inspect.isclass(each) and issubclass(each, Exception)


def is_option(each: type) -> bool:
    """Whether users make it, to say how something is to be done."""
    return each.__module__.startswith(("graphopt.compression.", "graphopt.passes."))


def at(path: str) -> Any:
    """What a dotted path names."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def anchor(name: str) -> str:
    """Of the heading that is `name` as code."""
    return name.lower().replace(".", "")


def function(name: str, each: Any, targets: dict[str, str]) -> str:
    """Signature and docstring."""
    return "\n\n".join([f"### {code(name)}", signature(name, each), words(each, targets)])


def option(name: str, each: type, targets: dict[str, str]) -> str:
    """How it is made, and its docstring."""
    parts = [f"### {code(name)}", signature(f"graphopt.{name}", each, result=False), words(each, targets)]
    return "\n\n".join(parts)


def class_(name: str, each: type, targets: dict[str, str], reached: str = "") -> str:
    """Docstring, fields, properties and methods."""
    parts = [f"### {code(name)}"]
    if reached:
        parts.append(f"At {code(reached)}.")
    parts += fields(name, each)
    parts.append(words(each, targets))
    if rows := list(properties(each, targets)):
        parts.append(table(("property", "type", "what it is"), rows))
    for method in methods(each):
        own = OWN.get(name, name.lower()) + ("" if method.__name__ == "__call__" else f".{method.__name__}")
        parts += [f"#### {code(f'{own}()')}", signature(own, method), words(method, targets)]
    return "\n\n".join(parts)


def fields(name: str, each: type) -> list[str]:
    """The fields of a dataclass, which its docstring explains, as in the source."""
    if not dataclasses.is_dataclass(each):
        return []
    lines = [f"    {field.name}: {field.type}" for field in dataclasses.fields(each) if field.repr]
    return ["\n".join(["```python", f"class {name}:", *lines, "```"])]


def properties(each: type, targets: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """Name, type and meaning."""
    for name, member in vars(each).items():
        if isinstance(member, property) and not name.startswith("_") and member.fget is not None:
            kind = member.fget.__annotations__.get("return", "")
            yield code(name), code(kind), linked(" ".join((member.__doc__ or "").split()), targets)


def methods(each: type) -> Iterator[Any]:
    """Public methods that are the class's own, and what calling it does."""
    for name, member in vars(each).items():
        bare = member.__func__ if isinstance(member, classmethod) else member
        is_public = name == "__call__" or not name.startswith("_")
        if inspect.isfunction(bare) and is_public and bare.__doc__:
            yield bare


def signature(name: str, each: Any, *, result: bool = True) -> str:
    """A signature as code, a parameter a line where they are many."""
    found, kinds = inspect.signature(each), types_of(each)
    parameters = [text for text in spelled(list(found.parameters.values()), kinds) if text not in ("self", "cls")]
    returned = f" -> {kinds['return']}" if result and "return" in kinds else ""
    line = f"{name}({', '.join(parameters)}){returned}"
    if len(line) > 88:
        line = f"{name}(\n" + "".join(f"    {each},\n" for each in parameters) + f"){returned}"
    return f"```python\n{line}\n```"


def types_of(each: Any) -> dict[str, str]:
    """Types by the parameters' names, as they stand in the source, where some modules keep no text of them."""
    if inspect.isclass(each):
        return {field.name: str(field.type) for field in dataclasses.fields(each)}
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(each)))).body
    assert isinstance(node, ast.FunctionDef)
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
    found = {one.arg: ast.unparse(one.annotation) for one in arguments if one and one.annotation}
    return found | ({"return": ast.unparse(node.returns)} if node.returns else {})


def spelled(parameters: list[inspect.Parameter], kinds: dict[str, str]) -> Iterator[str]:
    """Names, annotations and defaults as in the source, with the star in front of what has to be named."""
    stars: dict[object, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    has_star = any(each.kind is each.VAR_POSITIONAL for each in parameters)
    for each in parameters:
        if each.kind is each.KEYWORD_ONLY and not has_star:
            has_star = True
            yield "*"
        kind = f": {kinds[each.name]}" if each.name in kinds else ""
        default = "" if each.default is each.empty else f" = {each.default!r}"
        yield f"{stars.get(each.kind, '')}{each.name}{kind}{default if kind else default.replace(' ', '')}"


def words(each: Any, targets: dict[str, str]) -> str:
    """A docstring, with links to what it names."""
    return linked(inspect.getdoc(each) or "", targets)
