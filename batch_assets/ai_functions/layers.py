"""Rewrite a query so that Spark sends as few requests as possible.

A ``SELECT`` with ai functions becomes three layers. The bottom layer does everything that needs no answer: ``WHERE``
and, if the order doesn't depend on an answer, ``ORDER BY`` and ``LIMIT``. The middle layer makes each distinct call
once, over rows repartitioned so that equal requests are in the same task. The top layer computes everything that uses
answers. Without this rewrite, Spark would send a request for every row before it applies a ``LIMIT``.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlglot import exp

from batch_assets.ai_functions.requests import AiFunctionError

# Prefix of the names created here, in lower case because names in Spark are not case-sensitive.
_PREFIX = "_batch_assets_"
# Functions that turn one row into several: a LIMIT applies to their output.
_GENERATORS = (exp.UDTF, exp.Explode, exp.Posexplode, exp.Inline)


@dataclass(frozen=True)
class PlacedCall:
    """A call in the rewritten query: a function, its arguments by name, and the number of tasks that run it."""

    function: str
    arguments: dict[str, Any]
    tasks: int


Place = Callable[[Any], PlacedCall]


def rewrite_in_layers(tree: Any, names: frozenset[str], place: Place) -> Any:
    """Rewrite a query in layers.

    Args:
        tree: the parsed query.
        names: names of the ai functions, in lower case.
        place: registers a call, and returns how it appears in the rewritten query.

    Raises:
        AiFunctionError: an ai function is called where that is not supported.
    """
    # From the inside out, so that subqueries are in layers before the queries around them.
    for select in reversed(list(tree.find_all(exp.Select, bfs=False))):
        layers = _Layers(select, names, place)
        if not layers.calls:
            continue
        rewritten = layers.rewrite()
        if select is tree:
            tree = rewritten
        else:
            select.replace(rewritten)
    return tree


def is_call(node: Any, names: frozenset[str]) -> bool:
    """Whether a node calls one of the named functions."""
    return isinstance(node, exp.Func) and name_of(node) in names


def name_of(node: Any) -> str:
    """Return the name of a called function in lower case."""
    name = node.name if isinstance(node, exp.Anonymous) else node.sql_name()
    return str(name).lower()


@dataclass
class _Layers:
    """Rewrites one SELECT in layers."""

    select: Any
    names: frozenset[str]
    place: Place
    below: list[Any] = field(default_factory=list)
    middle: list[tuple[str, PlacedCall]] = field(default_factory=list)
    answers: dict[str, str] = field(default_factory=dict)
    named: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.calls = [
            node
            for node in self.select.find_all(exp.Func)
            if is_call(node, self.names) and node.find_ancestor(exp.Select) is self.select
        ]
        if not self.calls:
            return
        self._ids = {id(call) for call in self.calls}
        self._aliases = {item.alias.lower() for item in self.select.expressions if item.alias}
        self._answer_names = {
            item.alias.lower() for item in self.select.expressions if item.alias and self._has_call(item)
        }
        # An alias can have the same name as a column in its own expression. In other expressions, the name then refers
        # to the table's column.
        inputs = {item.alias.lower() for item in self.select.expressions if item.alias.lower() in _columns(item)}
        self._lateral_names = self._answer_names - inputs
        self._check_supported()
        # Aggregates and GROUP BY go above the calls if they use answers. Otherwise, the calls may use their results.
        group = self.select.args.get("group")
        self.aggregate_above = any(
            call.find_ancestor(exp.AggFunc, exp.Group, exp.Select) is not self.select for call in self.calls
        ) or (group is not None and bool(self._answer_names & _columns(group) or self._ordinals(group)))
        self.star = next((item for item in self.select.expressions if _is_star(item)), None)

    def _check_supported(self) -> None:
        for call in self.calls:
            place = call.find_ancestor(exp.Lambda, exp.Join, exp.Lateral, exp.From, exp.Select)
            if place is not self.select:
                what = {exp.Lambda: "a lambda function", exp.Join: "a join condition"}.get(type(place), "FROM")
                raise AiFunctionError(
                    f"{name_of(call)} can't be used in {what}: call it in a subquery and give its result a name"
                )
        for clause in ("sort", "cluster", "distribute", "qualify", "windows", "pivots", "sample"):
            if self.select.args.get(clause):
                raise AiFunctionError(
                    f"{clause.upper()} can't be used in a SELECT with ai functions: move the calls to a subquery"
                )
        group = self.select.args.get("group")
        if group is not None and any(value for key, value in group.args.items() if key != "expressions"):
            raise AiFunctionError(
                "GROUP BY with ALL, ROLLUP, CUBE or GROUPING SETS can't be used in a SELECT with ai functions: move "
                "the calls to a subquery"
            )
        if any(call.find_ancestor(exp.Filter, exp.Select) is not self.select for call in self.calls):
            raise AiFunctionError("ai functions can't be used in FILTER (WHERE ...): call them in a subquery")
        if sum(_is_star(item) for item in self.select.expressions) > 1:
            raise AiFunctionError("a SELECT with ai functions can have only one *: name the columns")

    def rewrite(self) -> Any:
        args = self.select.args
        above = exp.Select(distinct=args.get("distinct"), with_=args.get("with_"), limit=args.get("limit"))
        above.set("offset", args.get("offset"))
        below = exp.Select(from_=args.get("from_"), joins=args.get("joins"), laterals=args.get("laterals"))
        can_limit = self._can_limit()

        where, having = self._split("where"), self._split("having")
        if where[0]:
            below.set("where", exp.Where(this=exp.and_(*where[0], copy=False)))
        # Conditions come first, one after the other: a row that fails one causes no more requests.
        conditions = []
        for condition in where[1] + ([] if self.aggregate_above else having[1]):
            lifted = self._lift(condition, expand_aliases=True)
            conditions.append((len(self.middle), lifted))
        projections = [self._project(item) for item in self.select.expressions]
        group = args.get("group")
        if self.aggregate_above:
            if group is not None:
                above.set("group", exp.Group(expressions=[self._lift(item) for item in group.expressions]))
            conditions_above = [self._lift(condition) for condition in having[0] + having[1]]
            if conditions_above:
                above.set("having", exp.Having(this=exp.and_(*conditions_above, copy=False)))
        else:
            below.set("group", group)
            if having[0]:
                below.set("having", exp.Having(this=exp.and_(*having[0], copy=False)))
        order = args.get("order")
        if order is not None:
            if can_limit:
                below.set("order", self._below_order(order))
            above.set("order", self._above_order(order))
        if can_limit:
            below.set("limit", args.get("limit"))
            below.set("offset", args.get("offset"))
            above.set("limit", None)
            above.set("offset", None)
        hidden = [item.alias for item in self.below if item.alias.startswith(_PREFIX)]
        hidden += [name for name, _ in self.middle]
        if self.star is not None:
            star = exp.Star(except_=[exp.to_identifier(name) for name in hidden])
            projections = [star if item is self.star else item for item in projections]
            below_projections = [self.star.copy(), *self.below]
        else:
            below_projections = self.below or [exp.alias_(exp.Literal.number(1), f"{_PREFIX}one")]
        below.set("expressions", below_projections)
        above.set("expressions", projections)
        rows, added = below, 0
        for number, condition in conditions:
            rows = self._add_calls(rows, self.middle[added:number])
            rows = exp.Select(expressions=[exp.Star()], from_=_from(rows), where=exp.Where(this=condition))
            added = number
        above.set("from_", _from(self._add_calls(rows, self.middle[added:])))
        return above

    def _add_calls(self, rows: Any, calls: Sequence[tuple[str, PlacedCall]]) -> Any:
        for name, call in calls:
            spread = exp.Select(expressions=[exp.Star()], from_=_from(rows))
            by = next((arg for arg in call.arguments.values() if isinstance(arg, exp.Column)), None)
            keys = [exp.Literal.number(call.tasks), *([by.copy()] if by is not None and call.tasks > 1 else [])]
            spread.set("hint", exp.Hint(expressions=[exp.Anonymous(this="REPARTITION", expressions=keys)]))
            function = exp.Anonymous(this=call.function, expressions=list(call.arguments.values()))
            rows = exp.Select(expressions=[exp.Star(), exp.alias_(function, name)], from_=_from(spread))
        return rows

    def _can_limit(self) -> bool:
        """Whether the rows that LIMIT keeps are known without any answers."""
        args = self.select.args
        if args.get("limit") is None and args.get("offset") is None:
            return False
        if (
            args.get("distinct")
            or self.aggregate_above
            or any(self._split(clause)[1] for clause in ("where", "having"))
        ):
            return False
        if any(call.find_ancestor(*_GENERATORS, exp.Window, exp.Select) is not self.select for call in self.calls):
            return False
        order = args.get("order")
        if order is None:
            return True
        beside_star = self.star is not None and (self._ordinals(order) or self._aliases & _columns(order))
        if order.args.get("all") or beside_star:
            return False
        ordinals = {str(number) for number, item in enumerate(self.select.expressions, 1) if self._has_call(item)}
        return not (self._has_call(order) or self._answer_names & _columns(order) or ordinals & self._ordinals(order))

    def _split(self, clause: str) -> tuple[list[Any], list[Any]]:
        """Split the terms of an AND condition into those without calls and those with calls."""
        whole = self.select.args.get(clause)
        if whole is None:
            return [], []
        parts = list(whole.this.flatten()) if isinstance(whole.this, exp.And) else [whole.this]
        # WHERE can't use aliases.
        names = set() if clause == "where" else self._answer_names
        above = [part for part in parts if self._has_call(part) or names & _columns(part)]
        return [part for part in parts if not any(part is other for other in above)], above

    def _project(self, item: Any) -> Any:
        if _is_star(item):
            return item
        expression = item.this if isinstance(item, exp.Alias) else item
        name = item.alias if isinstance(item, exp.Alias) else ""
        if not self._has_call(item) and not self.aggregate_above and not (self._lateral_names & _columns(item)):
            output = name or item.output_name or item.sql(dialect="spark")
            taken = {placed.alias.lower() for placed in self.below}
            if self.star is not None or output.lower() in taken or not (name or isinstance(item, exp.Column)):
                return exp.alias_(self._hidden_column(expression), output, quoted=True)
            self.below.append(exp.alias_(expression.copy(), output, quoted=True))
            return exp.column(output, quoted=True)
        if not name:
            name = name_of(expression) if is_call(expression, self.names) else item.output_name
            self.named[name] += 1
            name += f"_{self.named[name]}" if name and self.named[name] > 1 else ""
        lifted = self._lift(expression)
        return exp.alias_(lifted, name or item.sql(dialect="spark"), quoted=True)

    def _below_order(self, order: Any) -> Any:
        order = order.copy()
        for item in order.expressions:
            if _is_ordinal(item.this):
                projection = self.select.expressions[int(item.this.name) - 1]
                item.set("this", (projection.this if isinstance(projection, exp.Alias) else projection).copy())
        return order

    def _above_order(self, order: Any) -> Any:
        above = order.copy()
        for item, original in zip(above.expressions, order.expressions, strict=True):
            key = original.this
            is_alias = isinstance(key, exp.Column) and not key.table and key.name.lower() in self._aliases
            if not _is_ordinal(key) and not is_alias:
                item.set("this", self._lift(key))
        return above

    def _lift(self, node: Any, *, keep_aggregates: bool | None = None, expand_aliases: bool = False) -> Any:
        """Return a node for the top layer: what uses answers stays, the rest becomes columns of the bottom layer.

        With ``keep_aggregates``, aggregates and windows stay on top, and only their inputs move to the bottom. With
        ``expand_aliases``, aliases that are not defined yet are replaced with their expressions.
        """
        keep_aggregates = self.aggregate_above if keep_aggregates is None else keep_aggregates
        if id(node) in self._ids:
            return exp.column(self._register_call(node))
        if isinstance(node, exp.Column) and _first_name(node) in self._lateral_names:
            if not expand_aliases:
                return node.copy()
            projection = next(item for item in self.select.expressions if item.alias.lower() == _first_name(node))
            lifted = self._lift(projection.this)
            return exp.Dot.build([exp.paren(lifted), *node.parts[1:]]) if len(node.parts) > 1 else lifted
        if self._is_movable(node, keep_aggregates):
            return node.copy() if _is_constant(node) else self._hidden_column(node)
        # A window keeps its own function, a CASE its branches, and a struct its fields.
        if isinstance(node, exp.Window):
            return self._with_lifted_parts(node, keep_aggregates=True, kept=(node.this,))
        if isinstance(node, exp.Case):
            return self._with_lifted_parts(node, keep_aggregates, kept=node.args["ifs"])
        return self._with_lifted_parts(node, keep_aggregates, expand_aliases=expand_aliases)

    def _with_lifted_parts(
        self, node: Any, keep_aggregates: bool, kept: Sequence[Any] = (), *, expand_aliases: bool = False
    ) -> Any:
        def lifted(child: Any) -> Any:
            if isinstance(child, exp.Lambda | exp.DataType | exp.Identifier | exp.Star) or not isinstance(
                child, exp.Expr
            ):
                return child
            if isinstance(child, exp.PropertyEQ | exp.Kwarg):
                named = child.copy()
                named.set("expression", self._lift(child.expression, keep_aggregates=keep_aggregates))
                return named
            if any(child is part for part in kept):
                return self._with_lifted_parts(child, keep_aggregates)
            if isinstance(child, exp.Subquery) and isinstance(node, exp.In | exp.Exists):
                return child
            return self._lift(child, keep_aggregates=keep_aggregates, expand_aliases=expand_aliases)

        above = node.copy()
        for key, value in node.args.items():
            above.set(key, [lifted(item) for item in value] if isinstance(value, list) else lifted(value))
        return above

    def _is_movable(self, node: Any, keep_aggregates: bool) -> bool:
        """Whether the bottom layer can compute a node."""
        if isinstance(node, exp.Subquery):
            return True
        if not isinstance(node, exp.Condition) or self._has_call(node) or self._lateral_names & _columns(node):
            return False
        return not keep_aggregates or node.find(exp.AggFunc, exp.Window) is None

    def _register_call(self, call: Any) -> str:
        key = call.sql(dialect="spark")
        if key not in self.answers:
            placed = self.place(call)
            arguments = {
                name: self._lift(value, keep_aggregates=False, expand_aliases=True)
                for name, value in placed.arguments.items()
            }
            self.answers[key] = f"{_PREFIX}answer_{len(self.answers)}"
            self.middle.append((self.answers[key], PlacedCall(placed.function, arguments, placed.tasks)))
        return self.answers[key]

    def _hidden_column(self, node: Any) -> Any:
        for placed in self.below:
            if placed.this == node:
                return exp.column(placed.alias, quoted=True)
        name = f"{_PREFIX}column_{len(self.below)}"
        self.below.append(exp.alias_(node.copy(), name, quoted=True))
        return exp.column(name, quoted=True)

    def _has_call(self, node: Any) -> bool:
        return any(id(part) in self._ids for part in node.walk())

    def _ordinals(self, clause: Any) -> set[str]:
        items = (item.this if isinstance(item, exp.Ordered) else item for item in clause.expressions)
        return {item.name for item in items if _is_ordinal(item)}


def _from(rows: Any) -> Any:
    return exp.From(this=rows.subquery(f"{_PREFIX}rows", copy=False))


def _is_star(item: Any) -> bool:
    return isinstance(item, exp.Star) or (isinstance(item, exp.Column) and isinstance(item.this, exp.Star))


def _is_ordinal(item: Any) -> bool:
    return isinstance(item, exp.Literal) and item.is_int


def _is_constant(node: Any) -> bool:
    return node.find(exp.Column, exp.Func, exp.Subquery, exp.Star) is None


def _first_name(column: Any) -> str:
    """Return the first part of a column's name: its table or struct, if it has one."""
    return str(column.parts[0].name).lower()


def _columns(node: Any) -> set[str]:
    """Return the first parts of the names of all columns in a node, in lower case."""
    return {_first_name(column) for column in node.find_all(exp.Column)}
