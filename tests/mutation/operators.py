# Copyright 2026 The LoomVideo for Diffusers authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Small mistakes: every place of a source file where one could be made, and what it would read then."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass


SWAPPED_COMPARISONS = {
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==",
    "in": "not in", "not in": "in", "is": "is not", "is not": "is",
}  # fmt: skip
SWAPPED_ARITHMETIC = {"+": "-", "-": "+", "*": "/", "/": "*", "//": "/", "%": "*", "**": "*"}
SWAPPED_NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "floor": "ceil", "ceil": "floor"}
OPERATOR = re.compile(r"\bis\s+not\b|\bnot\s+in\b|\bis\b|\bin\b|<=|>=|==|!=|//|\*\*|[-<>+*/%]|\band\b|\bor\b")
# Strings that mean something to the code, not to a reader
WORD = re.compile(r"[\w.:/@*-]+")
# Calls whose arguments are words for people
SPOKEN = ("logger", "warnings", "print", "deprecate")
SPOKEN_KEYWORDS = ("help", "metavar", "description", "epilog", "desc", "title")


@dataclass(frozen=True)
class Change:
    """One place of a file, `start` to `end` in bytes, and the bytes that are to stand there."""

    operator: str
    line: int
    start: int
    end: int
    new: bytes

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.new + source[self.end :]


def changes_of(source: bytes) -> list[Change]:
    """
    All small mistakes that could be made in a source file, in its order. Imports, annotations, docstrings, errors that
    are raised and words for people are left as they are.
    """
    finder = _Finder(source)
    finder.visit(ast.parse(source))
    return sorted(set(finder.changes), key=lambda change: (change.start, change.end, change.operator, change.new))


def compiles(source: bytes) -> bool:
    """Whether it is Python at all."""
    try:
        compile(source, "changed", "exec")
    except (SyntaxError, ValueError):
        return False
    return True


class _Finder(ast.NodeVisitor):
    def __init__(self, source: bytes) -> None:
        self.source = source
        self.changes: list[Change] = []
        self.offsets = [0]
        for line in source.splitlines(keepends=True):
            self.offsets.append(self.offsets[-1] + len(line))

    def start(self, node: ast.AST) -> int:
        return self.offsets[node.lineno - 1] + node.col_offset

    def end(self, node: ast.AST) -> int:
        return self.offsets[node.end_lineno - 1] + node.end_col_offset

    def text(self, node: ast.AST) -> bytes:
        return self.source[self.start(node) : self.end(node)]

    def add(self, operator: str, node: ast.AST, new: bytes, start: int | None = None, end: int | None = None) -> None:
        start, end = self.start(node) if start is None else start, self.end(node) if end is None else end
        line = self.source.count(b"\n", 0, start) + 1
        self.changes.append(Change(operator, line, start, end, new))

    def swap(self, operator: str, left: ast.AST, right: ast.AST, swapped: dict[str, str]) -> None:
        """Replaces the sign between two expressions."""
        start, end = self.end(left), self.start(right)
        between = re.sub(rb"#[^\n]*", lambda comment: b" " * len(comment[0]), self.source[start:end])
        found = OPERATOR.search(between.decode())
        sign = " ".join(found[0].split()) if found else ""
        if sign in swapped:
            self.add(operator, left, swapped[sign].encode(), start + found.start(), start + found.end())

    def negate(self, operator: str, test: ast.AST) -> None:
        if not isinstance(test, ast.NamedExpr):
            self.add(operator, test, b"(not (" + self.text(test) + b"))")

    # What is left as it is

    def visit_Import(self, node: ast.Import) -> None: ...

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None: ...

    def visit_Raise(self, node: ast.Raise) -> None: ...

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None: ...

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_arguments(self, node: ast.arguments) -> None:
        for default in (*node.defaults, *node.kw_defaults):
            if default is not None:
                self.visit(default)

    # Statements

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.visit(node.args)
        self.visit_body(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.visit_body(node)

    def visit_Module(self, node: ast.Module) -> None:
        self.visit_body(node)

    def visit_body(self, node: ast.FunctionDef | ast.ClassDef | ast.Module) -> None:
        for statement in node.body:
            if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):
                self.visit(statement)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call) and not self.is_spoken(node.value):
            self.add("statement deleted", node, b"pass")
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        target = node.targets[0]
        if isinstance(target, ast.Name) and target.id == "__all__":
            return
        if isinstance(target, (ast.Attribute, ast.Subscript)):
            self.add("statement deleted", node, b"pass")
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.add("statement deleted", node, b"pass")
        self.swap_augmented(node)
        self.generic_visit(node)

    def swap_augmented(self, node: ast.AugAssign) -> None:
        start, end = self.end(node.target), self.start(node.value)
        sign = self.source[start:end].decode().strip().removesuffix("=")
        if sign in SWAPPED_ARITHMETIC and not self.is_text(node.value):
            self.add("arithmetic", node, f" {SWAPPED_ARITHMETIC[sign]}= ".encode(), start, end)

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None and not (isinstance(node.value, ast.Constant) and not node.value.value):
            self.add("result dropped", node.value, b"None")
        self.generic_visit(node)

    def visit_Break(self, node: ast.Break) -> None:
        self.add("jump", node, b"continue")

    def visit_Continue(self, node: ast.Continue) -> None:
        self.add("jump", node, b"break")

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" not in ast.unparse(node.test):
            self.negate("condition negated", node.test)
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.negate("condition negated", node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self.negate("condition negated", test)
        self.generic_visit(node)

    # Expressions

    def visit_Compare(self, node: ast.Compare) -> None:
        for left, right in zip((node.left, *node.comparators), node.comparators):
            self.swap("comparison", left, right, SWAPPED_COMPARISONS)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        for left, right in zip(node.values, node.values[1:]):
            self.swap("and, or", left, right, {"and": "or", "or": "and"})
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if not (self.is_text(node.left) or self.is_text(node.right)):
            self.swap("arithmetic", node.left, node.right, SWAPPED_ARITHMETIC)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):
            self.add("not dropped", node, self.text(node.operand))
        elif isinstance(node.op, ast.USub):
            self.add("arithmetic", node, self.text(node.operand))
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self.add("constant", node, str(not value).encode())
        elif isinstance(value, (int, float)):
            self.add("constant", node, str(value + 1).encode())
        elif isinstance(value, str) and WORD.fullmatch(value) and self.text(node)[-1:] in b"\"'":
            text = self.text(node)
            self.add("text", node, text[:-1] + b"_" + text[-1:])

    def visit_Name(self, node: ast.Name) -> None:
        if node.id in SWAPPED_NAMES and isinstance(node.ctx, ast.Load):
            self.add("min, max", node, SWAPPED_NAMES[node.id].encode())

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if node.attr in SWAPPED_NAMES and isinstance(node.ctx, ast.Load):
            self.add("min, max", node, SWAPPED_NAMES[node.attr].encode(), self.end(node) - len(node.attr))
        self.generic_visit(node)

    def visit_Slice(self, node: ast.Slice) -> None:
        for bound in (node.lower, node.upper):
            if bound is not None:
                self.add("slice", bound, b"(" + self.text(bound) + b") + 1")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if self.is_spoken(node):
            return
        arguments = sorted([*node.args, *node.keywords], key=self.start)
        for index, argument in enumerate(arguments):
            if isinstance(argument, ast.keyword) and argument.arg not in (None, *SPOKEN_KEYWORDS):
                if index:
                    self.add("argument dropped", argument, b"", self.end(arguments[index - 1]))
                else:
                    following = arguments[1:2]
                    self.add("argument dropped", argument, b"", None, self.start(following[0]) if following else None)
        self.visit(node.func)
        for argument in arguments:
            if not (isinstance(argument, ast.keyword) and argument.arg in SPOKEN_KEYWORDS):
                self.visit(argument)

    def is_spoken(self, node: ast.Call) -> bool:
        return ast.unparse(node.func).split(".")[0] in SPOKEN

    def is_text(self, node: ast.AST) -> bool:
        return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def enclosing_function(tree: ast.Module, line: int) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    """The innermost function around a line, its decorators and defaults included."""
    found = None
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.lineno <= line <= node.end_lineno:
            found = node if found is None or node.lineno > found.lineno else found
    return found


def names_defined(tree: ast.Module, line: int) -> Iterator[str]:
    """The names that the statement of a module or of a class at a line gives values to."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.lineno <= line <= node.end_lineno:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                yield from (part.id for part in ast.walk(target) if isinstance(part, ast.Name))
