"""Mutations of a Python file: every way to change one operator, comparison, constant, condition or call."""

import ast
from collections.abc import Iterator
from typing import NamedTuple

ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
# Each comparison with its boundary moved, and negated.
COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
OTHER_FUNCTION = {"min": "max", "max": "min", "any": "all", "all": "any"}
# Functions that are left out, and their first argument taken as it is.
LEFT_OUT = {"abs", "broadcast_to", "reversed", "sorted", "sqrt", "swapaxes", "trace", "transpose"}
# Functions of which two arguments next to each other are swapped: the position of the first.
SWAPPED = {"apply": 0, "blend": 1, "copysign": 0, "multiply": 0, "where": 1}


class Mutant(NamedTuple):
    """One change of a file."""

    line: int
    before: str  # the statement's first line
    after: str
    source: str  # the whole file, changed


def mutants(source: str) -> Iterator[Mutant]:
    """Every mutant of ``source``, in the order of its lines.

    Annotations and text are not changed, nor are checks: what ``raise`` holds, and ``strict`` of a ``zip``.
    """
    tree = ast.parse(source)
    unchanged = ast.unparse(tree)
    for parent, field, position, statement in _places(tree, None):
        value = getattr(parent, field)
        child = value if position is None else value[position]
        before = _first_line(statement)
        for other in _replacements(child, is_condition=field == "test" and isinstance(parent, ast.If | ast.IfExp)):
            setattr(parent, field, other if position is None else [*value[:position], other, *value[position + 1 :]])
            after, changed = _first_line(other if child is statement else statement), ast.unparse(tree)
            setattr(parent, field, value)
            if changed != unchanged:
                yield Mutant(child.lineno, before, after, changed)


def _first_line(statement: ast.stmt) -> str:
    # A statement's own line: of `with`, `for` or `def` not its body, of which the first line is shown by itself.
    return next(line for line in ast.unparse(statement).splitlines() if not line.startswith("@"))


def _places(node: ast.AST, statement: ast.stmt | None) -> Iterator[tuple[ast.AST, str, int | None, ast.stmt]]:
    """Where an expression stands: its parent, the field, the position if that is a list, and its statement."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list") or _is_type_or_check(node):
            continue
        children = list(enumerate(value)) if isinstance(value, list) else [(None, value)]
        for position, child in children:
            if isinstance(child, ast.JoinedStr) or not isinstance(child, ast.AST):
                continue
            of = child if isinstance(child, ast.stmt) else statement
            if of is not None and isinstance(child, ast.expr | ast.AugAssign):
                yield node, field, position, of
            yield from _places(child, of)


def _is_type_or_check(node: ast.AST) -> bool:
    match node:
        case ast.AnnAssign():
            return "TypeAlias" in ast.unparse(node.annotation)
        case ast.keyword(name):
            return name == "strict"
        case _:
            return isinstance(node, ast.Raise)


def _replacements(node: ast.AST, is_condition: bool) -> Iterator[ast.AST]:
    match node:
        case ast.AugAssign(target, operator, value) if type(operator) in ARITHMETIC:
            yield ast.AugAssign(target, ARITHMETIC[type(operator)](), value)
        case ast.BinOp(left, operator, right) if type(operator) in ARITHMETIC:
            yield ast.BinOp(left, ARITHMETIC[type(operator)](), right)
        case ast.BoolOp(operator, values):
            yield ast.BoolOp(ast.Or() if isinstance(operator, ast.And) else ast.And(), values)
        case ast.Compare(left, operators, others):
            for position, operator in enumerate(operators):
                for other in COMPARISONS[type(operator)]:
                    yield ast.Compare(left, [*operators[:position], other(), *operators[position + 1 :]], others)
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield operand
        case ast.Constant(bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(int(value)):
            yield ast.Constant(value + 1)
        case ast.Constant(float(value)):
            # One percent: what matters in a number with digits behind the point are its digits.
            yield ast.Constant(1.01 * value if value else 1.0)
        case ast.Call():
            yield from _other_calls(node)
    if is_condition and not isinstance(node, ast.Compare | ast.BoolOp | ast.UnaryOp):
        yield ast.UnaryOp(ast.Not(), node)


def _other_calls(call: ast.Call) -> Iterator[ast.expr]:
    match call.func:
        case ast.Name(name):
            renamed = ast.Name(OTHER_FUNCTION.get(name, name))
        case ast.Attribute(value, name):
            renamed = ast.Attribute(value, OTHER_FUNCTION.get(name, name))
        case _:
            return
    if name in OTHER_FUNCTION:
        yield ast.Call(renamed, call.args, call.keywords)
    if name in LEFT_OUT and call.args:
        yield call.args[0]
    first = SWAPPED.get(name)
    if first is not None and len(call.args) >= first + 2:
        before, one, two, after = call.args[:first], *call.args[first : first + 2], call.args[first + 2 :]
        yield ast.Call(call.func, [*before, two, one, *after], call.keywords)
