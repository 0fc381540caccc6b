"""Typical one-line mistakes in a Python source, found in its syntax tree and written back as text."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

COMPARE = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
}
ARITHMETIC = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
    ast.FloorDiv: "/",
    ast.Mod: "+",
    ast.Pow: "*",
    ast.BitAnd: "|",
    ast.BitOr: "&",
    ast.LShift: ">>",
    ast.RShift: "<<",
}
OTHER_NAME = {
    "min": "max",
    "max": "min",
    "amax": "amin",
    "amin": "amax",
    "argmax": "argmin",
    "sum": "mean",
    "mean": "sum",
    "any": "all",
    "all": "any",
    "sigmoid": "tanh",
    "tanh": "sigmoid",
    "zeros": "ones",
    "ones": "zeros",
    "zeros_like": "ones_like",
    "ones_like": "zeros_like",
    "clamp_min": "clamp_max",
    "floor": "ceil",
    "cumsum": "cumprod",
}
REMOVABLE = {
    "abs",
    "abs_",
    "square",
    "sqrt",
    "detach",
    "clone",
    "copy",
    "relu",
    "relu_",
    "clamp",
    "clamp_",
    "clamp_min",
    "clamp_max",
    "sign",
    "round",
    "masked_fill",
    "masked_fill_",
    "requires_grad_",
    "sort",
}
MODULES = {"np", "torch", "math", "F"}  # whose functions stand for their first argument when they are left out
COMMUTATIVE = {"promote_types", "maximum", "minimum", "max", "min"}
UNREAD_KEYWORDS = {"device", "dtype", "strict", "unit", "desc"}  # a wrong one is an error at once, or says nothing
SKIPPED_CALLS = {"record_function", "super", "TypeVar"}


@dataclass(frozen=True)
class Mutant:
    """One mistake: `source[start:end]` becomes `text`."""

    file: str
    line: int
    kind: str
    start: int
    end: int
    text: str
    before: str  # the line as it is, stripped
    after: str  # the line with the mistake, stripped

    @property
    def key(self) -> tuple[str, str, str]:
        """What a mutant is listed by: no line numbers, which change."""
        return self.file, self.before, self.after

    def apply(self, source: str) -> str:
        """The source with the mistake."""
        return source[: self.start] + self.text + source[self.end :]


class _Finder(ast.NodeVisitor):
    """Collects mistakes as (node or span, kind, new text)."""

    def __init__(self, source: str):
        self.source, self.found = source, []
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line.encode()))
        self.bytes = source.encode()

    def span(self, node: ast.AST) -> tuple[int, int]:
        """Where a node stands, in bytes."""
        return (
            self.starts[node.lineno - 1] + node.col_offset,
            self.starts[node.end_lineno - 1] + node.end_col_offset,
        )

    def text(self, node: ast.AST) -> str:
        start, end = self.span(node)
        return self.bytes[start:end].decode()

    def add(self, node: ast.AST, kind: str, text: str) -> None:
        self.found.append((*self.span(node), node.lineno, kind, text))

    def between(self, left: ast.AST, right: ast.AST, kind: str, old: str, new: str) -> None:
        """Change the operator that stands between two nodes."""
        start, end = self.span(left)[1], self.span(right)[0]
        gap = self.bytes[start:end].decode()
        if "#" not in gap and old in gap:
            line = left.end_lineno + gap[: gap.index(old)].count("\n")
            self.found.append((start, end, line, kind, gap.replace(old, new, 1)))

    # --- what is left alone

    def visit_Import(self, node: ast.AST) -> None:
        return

    visit_ImportFrom = visit_Raise = visit_Assert = visit_JoinedStr = visit_Import

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if default is not None:
                self.visit(default)
        for statement in node.body:
            self.visit(statement)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for statement in node.body:
            self.visit(statement)

    def visit_keyword(self, node: ast.keyword) -> None:
        if node.arg not in UNREAD_KEYWORDS:
            self.visit(node.value)

    # --- mistakes

    def visit_Compare(self, node: ast.Compare) -> None:
        for left, operator, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
            old = {ast.Is: "is", ast.IsNot: "is not", ast.In: "in", ast.NotIn: "not in"}.get(type(operator))
            old = old or {"<=": "<", "<": "<=", ">=": ">", ">": ">=", "!=": "==", "==": "!="}[COMPARE[type(operator)]]
            self.between(left, right, "comparison", old, COMPARE[type(operator)])
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        old = {v: k for k, v in (("+", "-"), ("-", "+"), ("*", "/"), ("/", "*"))}
        names = {ast.FloorDiv: "//", ast.Mod: "%", ast.Pow: "**", ast.BitAnd: "&", ast.BitOr: "|"}
        names |= {ast.LShift: "<<", ast.RShift: ">>"}
        if type(node.op) in ARITHMETIC:
            new = ARITHMETIC[type(node.op)]
            self.between(node.left, node.right, "arithmetic", names.get(type(node.op)) or old[new], new)
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.add(node, "statement", "pass")
        new = ARITHMETIC.get(type(node.op))
        if new in ("-", "+", "/", "*"):
            old = {"-": "+=", "+": "-=", "/": "*=", "*": "/="}[new]
            self.between(node.target, node.value, "arithmetic", old, f"{new}=")
        self.visit(node.value)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self.between(left, right, "logic", f" {old} ", f" {new} ")
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        simple = isinstance(node.operand, ast.Name | ast.Attribute | ast.Call | ast.Subscript | ast.Constant)
        self.add(node, "negation", self.text(node.operand) if simple else f"({self.text(node.operand)})")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self.add(node, "constant", str(not value))
        elif isinstance(value, int):
            self.add(node, "constant", str(value + 1))
            if value > 0:
                self.add(node, "constant", str(value - 1))
        elif isinstance(value, float):
            self.add(node, "constant", repr(2 * value if value else 1.0))

    def visit_Slice(self, node: ast.Slice) -> None:
        text = self.text(node)
        other = {"1:": ":-1", ":-1": "1:"}.get(text)
        if other:
            self.add(node, "slice", other)
        elif node.step is None and (node.lower is None) != (node.upper is None):
            self.add(node, "slice", text[1:] + ":" if node.lower is None else ":" + text[:-1])
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in SKIPPED_CALLS:
            return
        _, end = self.span(node.func)
        if name in OTHER_NAME:
            self.found.append((end - len(name), end, node.func.end_lineno, "name", OTHER_NAME[name]))
        if name in REMOVABLE and isinstance(node.func, ast.Attribute):
            function = self.text(node.func.value) in MODULES
            self.add(node, "call", self.text(node.args[0] if function else node.func.value))
        plain = [a for a in node.args if not isinstance(a, ast.Starred)]
        if len(plain) == len(node.args) >= 2 and name not in COMMUTATIVE:
            first, second = plain[-2:]
            constant = any(isinstance(getattr(x, "operand", x), ast.Constant) for x in (first, second))
            if not constant and first.lineno == second.end_lineno and self.text(first) != self.text(second):
                (a, b), (c, d) = self.span(first), self.span(second)
                middle = self.bytes[b:c].decode()
                text = self.text(second) + middle + self.text(first)
                self.found.append((a, d, first.lineno, "arguments", text))
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Constant):
            return  # a docstring
        if isinstance(node.value, ast.Call):
            self.add(node, "statement", "pass")
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        if all(isinstance(target, ast.Subscript) for target in node.targets):
            self.add(node, "statement", "pass")
        self.visit(node.value)
        for target in node.targets:
            if isinstance(target, ast.Subscript):
                self.visit(target.slice)

    def _condition(self, test: ast.expr) -> None:
        if not isinstance(test, ast.UnaryOp | ast.Compare):  # these have a mistake of their own
            self.add(test, "condition", f"not ({self.text(test)})")

    def visit_If(self, node: ast.If) -> None:
        self._condition(node.test)
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._condition(node.test)
        self.generic_visit(node)


def mutants_of(file: str, source: str, functions: tuple[str, ...] | None = None) -> Iterator[Mutant]:
    """All mistakes in a file, or in these of its functions, each once."""
    tree, finder = ast.parse(source), _Finder(source)
    if functions is None:
        finder.visit(tree)
    else:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name in functions:
                finder.visit(node)
    lines, seen = source.splitlines(), set()
    for start, end, line, kind, text in sorted(finder.found):
        mutated = (finder.bytes[:start] + text.encode() + finder.bytes[end:]).decode()
        changed = mutated.splitlines()
        before, after = lines[line - 1].strip(), changed[line - 1].strip()
        if (line, after) in seen or before == after:
            continue
        seen.add((line, after))
        first = len(finder.bytes[:start].decode())
        yield Mutant(file, line, kind, first, first + len(finder.bytes[start:end].decode()), text, before, after)
