"""Formulas: what the text says, the columns it gives, and no code but what is listed."""

from __future__ import annotations

import copy
import dataclasses
import sys

import numpy as np
import pandas as pd
import pytest

from skgroupvae.data.design import PlainDesign
from skgroupvae.data.expressions import read_expression
from skgroupvae.data.formula import Formula, RandomPart, read_formula
from skgroupvae.data.formula_design import FormulaDesign

pytest.importorskip("formulaic")

RICH = (
    "y ~ sex * poly(x, 2) + bs(age, df=4, extrapolation='extend') + C(year, Sum) + center(age):x"
    " + np.log(x**2 + 1) + (poly(x, 2) | school)"
)


@pytest.fixture(scope="module")
def pupils():
    """120 pupils of 12 schools, shuffled, with an index of their own."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "x": rng.normal(3.0, 2.0, 120),
            "sex": rng.choice(["F", "M"], 120),
            "age": rng.uniform(5.0, 9.0, 120),
            "year": rng.choice([2001, 2002, 2003], 120),
            "school": np.repeat([f"s{i}" for i in range(12)], 10),
            "district": np.repeat([f"d{i}" for i in range(4)], 30),
            "y": rng.normal(size=120),
        }
    )
    return table.sample(frac=1.0, random_state=1)


@pytest.fixture(scope="module")
def rich(pupils):
    return design_of(RICH, pupils)


def design_of(text, table) -> FormulaDesign:
    return FormulaDesign.learn(read_formula(text), table)


# --- what the text says


def test_outcome_terms_and_random_part():
    formula = read_formula("y ~ x * sex + (1 + x | school)")
    assert formula.outcome == "y"
    assert [":".join(text for text, _ in term) for term in formula.terms] == ["1", "x", "sex", "x:sex"]
    assert formula.random == [RandomPart([1], ["school"])]
    assert formula.columns == ["x", "sex"]
    assert formula.categories == []
    assert read_formula("~ x + C(year)").categories == ["year"]
    assert read_formula("~ x").outcome is None
    assert read_formula("~ x").random == []


@pytest.mark.parametrize(
    "text",
    [
        "y ~ x + sex + (1 + x | school)",
        "y~(x|school)+x+sex",
        "`y` ~ `x` + sex + ( 1+x | `school` )",
        "y ~ x + sex + age - age + (1 + x | school)",
        "y ~ (x | school) + x + sex",
        "y ~ x + (1 + x | school) + sex",
    ],
)
def test_spellings_of_one_formula(text):
    assert read_formula(text) == read_formula("y ~ x + sex + (x | school)")


@pytest.mark.parametrize(
    "text",
    [
        "y ~ x + (1 + x | school) + (1 | district)",
        "y~(x|school)+(1|district)+x",
        "y ~ (1 + x | school) + x + ( 1 | `district` )",
    ],
)
def test_several_random_parts_are_a_list(text):
    formula = read_formula(text)
    assert formula.random == [([1], ["school"]), ([], ["district"])]
    assert formula == read_formula("y ~ x + (x | school) + (1 | district)")
    assert formula.columns == ["x"]


def test_random_parts_alone_leave_the_intercept():
    formula = read_formula("y ~ (1 | school) + (1 | district)")
    assert formula.terms == [[["1", "literal"]]]
    assert [part.groups for part in formula.random] == [["school"], ["district"]]


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("y ~ 0 + x", r"formula takes the intercept away \("),
        ("y ~ x - 1 + (1 | school)", r"formula takes the intercept away \("),
        ("y ~ x + (0 + x | school)", "formula takes the intercept away in its random part"),
        ("y ~ x + (x - 1 | school)", "formula takes the intercept away in its random part"),
        ("y ~ x + (1 | year) + (x - 1 | school)", "formula takes the intercept away in its random part"),
        ("y ~ x + (1 | school/sex)", r"formula has the groups 'school/sex'.*group_column=\['a', 'b'\]"),
        ("y ~ x + (1 | school:sex)", r"formula has the groups 'school:sex'.*group_column=\['a', 'b'\]"),
        ("y ~ x + (1 | school | sex)", r"formula has the groups 'school \| sex', but takes one column's"),
        ("y ~ x + (1 | a) + (1 | b/c)", r"formula has the groups 'b/c'"),
        ("y ~ x + (x || school)", r"formula has '\|\|'.*write '\|'"),
        ("y ~ x + (1 | a) + (x || b)", r"formula has '\|\|'.*write '\|'"),
        ("y ~ x | school", r"formula has '\|' outside.*\(1 \+ a \| group\)"),
        ("y ~ x + ((1 | school) + (1 | sex))", r"formula has '\|' outside.*\(1 \+ a \| group\)"),
        ("y ~ x:(1 | school)", r"formula must add its random part"),
        ("y ~ x + (1 | school):(1 | sex)", r"formula must add its random part"),
        ("y ~ x + (1 | school) - (1 | sex)", r"formula must add its random part"),
        ("y ~ x + (1 | school) (1 | sex)", r"formula must add its random part|cannot be read"),
        ("y ~ x + (1 | school", "formula has .* cannot be read"),
        ("y ~ x + (age | school)", r"formula lets \['age'\] vary by group.*add them"),
        ("y ~ x + (x | school) + (age | sex)", r"formula lets \['age'\] vary by group.*add them"),
        ("log(y) ~ x + (1 | school)", "formula must have one column's name.*TransformedTargetRegressor"),
        ("y + age ~ x", "formula must have one column's name"),
        ("x + (1 | school)", "formula=.* has no '~'"),
        ("y ~ x ~ age", "formula has '~' twice"),
        ("y ~ x + y", "formula has 'y' on both sides"),
        ("y ~ .", "formula has '.' for all other columns; name"),
        ("y ~ x +", "formula has 'x \\+', which cannot be read"),
        ("y ~ x.mean()", "formula has"),
        ("y ~ x + (x[0] | school)", "formula has"),
    ],
)
def test_texts_that_are_refused_in_one_line(formula, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_formula(formula)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


# --- its columns of a table


def test_split_gives_covariates_and_the_labels_of_each_factor(pupils):
    formula = read_formula("y ~ x + sex + (1 + x | school) + (1 | district)")
    frame, labels = formula.split(pupils, None, None)
    assert list(frame.columns) == ["x", "sex"]
    for own, name in zip(labels, ["school", "district"], strict=True):
        pd.testing.assert_series_equal(own, pupils[name])
    np.testing.assert_array_equal(formula.outcome_of(pupils), pupils["y"])
    # Passed beside the table by a search: any of them.
    for name in ("school", "district"):
        assert len(formula.split(pupils, None, pupils[name])[1]) == 2


def test_without_a_random_part_labels_are_those_without_a_formula(pupils):
    formula = read_formula("y ~ x")
    assert formula.split(pupils, None, None)[1] == [None]
    (labels,) = formula.split(pupils, "school", None)[1]
    pd.testing.assert_series_equal(labels, pupils["school"])
    (labels,) = formula.split(pupils, None, pupils["district"])[1]
    pd.testing.assert_series_equal(labels, pupils["district"])
    (labels,) = formula.split(pupils, ["district", "school"], None)[1]
    assert labels[0] == (pupils["district"].iloc[0], pupils["school"].iloc[0])


def test_a_formula_of_several_group_columns_has_tuples_for_labels(pupils):
    formula = Formula("y", [[["1", "literal"]]], [RandomPart([], ["district", "school"])])
    (labels,) = formula.split(pupils, None, None)[1]
    assert labels.tolist() == list(zip(pupils["district"], pupils["school"], strict=True))


@pytest.mark.parametrize(
    ("formula", "arguments", "message"),
    [
        ("y ~ height + (1 | school)", {}, r"formula names \['height'\], which X does not have; its columns"),
        ("y ~ x + (1 | class)", {}, r"formula names \['class'\], which X does not have"),
        ("y ~ x + (1 | school) + (1 | class)", {}, r"formula names \['class'\], which X does not have"),
        (
            "y ~ x + (1 | school)",
            {"groups": np.arange(120)},
            r"groups= is given, but formula has the groups \(\.\.\. \| school\), which are others; leave",
        ),
        (
            "y ~ x + (1 | school) + (1 | sex)",
            {"groups": np.arange(120)},
            r"the groups \(\.\.\. \| school\) and \(\.\.\. \| sex\), which are others",
        ),
    ],
)
def test_tables_that_do_not_fit_the_text(formula, arguments, message, pupils):
    with pytest.raises(ValueError, match=message):
        read_formula(formula).split(pupils, *({"group_column": None, "groups": None} | arguments).values())


def test_a_table_has_names_and_the_outcome(pupils):
    with pytest.raises(ValueError, match="formula needs a table with named columns, got ndarray"):
        read_formula("y ~ x").split(pupils.to_numpy(), None, None)
    with pytest.raises(ValueError, match=r"formula names \['height'\], which X does not have"):
        read_formula("height ~ x").outcome_of(pupils)
    with pytest.raises(ValueError, match="X has duplicate column names"):
        read_formula("y ~ x").split(pd.concat([pupils, pupils], axis=1), None, None)


# --- the design


def test_the_plain_formula_is_the_table_without_one(pupils):
    formula = design_of("y ~ x + sex + (1 + x | school)", pupils)
    plain = PlainDesign.learn(pupils[["x", "sex"]])
    assert formula.names == ("Intercept", "x", "sex[T.M]")
    np.testing.assert_allclose(formula.transform(pupils), plain.transform(pupils[["x", "sex"]]), atol=1e-12)
    assert formula.indicators == (2,)


def test_columns_are_those_of_formulaic(pupils):
    formulaic = pytest.importorskip("formulaic")
    text = "x * sex + C(year) + I(age ** 2)"
    design = design_of(f"y ~ {text} + (1 | school)", pupils)
    expected = formulaic.model_matrix(text, pupils)
    assert set(design.names) == set(expected.columns)
    raw = design.transform(pupils) * design.scale + design.center
    np.testing.assert_allclose(raw, expected[list(design.names)], atol=1e-10)


def test_knots_and_centers_are_those_of_the_fit(rich, pupils):
    """Rows alone get what they get among all others, whose moments and quantiles differ."""
    chosen = ((pupils["x"] > 4.0) & (pupils["sex"] == "M")).to_numpy()
    np.testing.assert_allclose(
        rich.transform(pupils[chosen]), rich.transform(pupils)[chosen], rtol=1e-10, atol=1e-10
    )


def test_terms_of_many_columns_vary_by_group(rich, pupils):
    (columns,) = rich.random_columns()
    assert [rich.names[j] for j in columns] == ["poly(x, 2)[1]", "poly(x, 2)[2]"]
    two = design_of("y ~ x * sex + (x:sex + sex | school) + (1 | district)", pupils)
    names = [[two.names[j] for j in columns] for columns in two.random_columns()]
    assert names == [["sex[T.M]", "x:sex[T.M]"], []]


def test_columns_are_found_by_the_name_of_their_term_or_their_own(pupils):
    design = design_of("y ~ poly(x, 2) + sex", pupils)
    found = design.column_of(["poly(x, 2)", "sex[T.M]"])
    assert [design.names[j] for j in found] == ["poly(x, 2)[1]", "poly(x, 2)[2]", "sex[T.M]"]
    with pytest.raises(ValueError, match="random_slopes names 'age', which is no term of formula; its terms"):
        design.column_of(["age"])


def test_a_formula_may_have_no_covariates(pupils):
    design = design_of("y ~ 1 + (1 | school)", pupils)
    assert design.names == ("Intercept",)
    np.testing.assert_array_equal(design.transform(pupils[["school"]]), np.ones((120, 1)))


def test_categories_keep_the_order_of_their_column_and_drop_what_does_not_occur(pupils):
    ordered = pupils.assign(sex=pd.Categorical(pupils["sex"], categories=["X", "M", "F"]))
    design = design_of("y ~ x + sex + (1 | school)", ordered)
    assert design.names == ("Intercept", "x", "sex[T.F]")
    np.testing.assert_allclose(design.transform(pupils), design.transform(ordered))


def test_nullable_and_polars_columns(pupils):
    polars = pytest.importorskip("polars")
    text = "y ~ x * sex + C(year) + (x | school)"
    expected = design_of(text, pupils).transform(pupils)
    other = pupils.astype({"year": "Int64", "x": "Float64", "sex": "string", "school": "category"})
    of_polars = read_formula(text).split(polars.DataFrame(pupils.to_dict("list")), None, None)[0]
    for table in (other, of_polars):
        np.testing.assert_allclose(design_of(text, table).transform(table), expected, atol=1e-8)


def test_numbers_that_are_categories_may_come_as_objects(pupils):
    design = design_of("y ~ C(year) + year", pupils)
    as_objects = pupils.assign(year=pupils["year"].astype(object))
    np.testing.assert_array_equal(design.transform(as_objects), design.transform(pupils))
    as_categories = pupils.assign(year=pd.Categorical(pupils["year"], [2003, 2001, 2002]))
    design = design_of("y ~ year", as_categories)
    assert design.names == ("Intercept", "year[T.2001]", "year[T.2002]")
    np.testing.assert_array_equal(design.transform(pupils), design.transform(as_categories))


def test_unseen_categories_get_the_mean_over_those_of_the_fit(rich, pupils):
    """Of the whole term, also in interactions and whatever the coding."""
    rows = pupils[:4].copy()
    rows["year"] = [2010, 2001, 2010, 2002]
    rows["sex"] = np.array(["F", None, "other", "M"], dtype=object)
    with (
        pytest.warns(UserWarning, match=r"'sex' of X has categories \[(None|nan), 'other'\] that the fit"),
        pytest.warns(UserWarning, match=r"'year' of X has categories \[2010\]"),
    ):
        found = rich.transform(rows)

    np.testing.assert_array_equal(found[:, 0], 1.0)

    def mean_over(column, table, transform):
        share = pupils[column].value_counts(normalize=True)
        return sum(share[level] * transform(table.assign(**{column: level})) for level in share.index)

    expected = [
        mean_over("year", rows[:1], rich.transform),
        mean_over("sex", rows[1:2], rich.transform),
        mean_over("sex", rows[2:3], lambda part: mean_over("year", part, rich.transform)),
        rich.transform(rows[3:]),
    ]
    np.testing.assert_allclose(found, np.concatenate(expected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("y ~ log(x - 100)", r"formula gives NaN.*\['log\(x - 100\)'\].*row 0 of X; drop"),
        ("y ~ log(sex)", "formula cannot be evaluated on X"),
        ("y ~ C(sex, levels=['F'])", "formula cannot be evaluated on X.*categories outside"),
        ("y ~ C(x, levels=[1])", r"formula cannot be evaluated on X.{1,320}\[\.\.\.\]$"),
        ("y ~ bs(x, df=1)", "formula cannot be evaluated on X.*df"),
    ],
)
def test_designs_that_cannot_be(formula, message, pupils):
    with pytest.raises(ValueError, match=message) as caught:
        design_of(formula, pupils)
    assert "\n" not in str(caught.value)


def test_later_tables_that_do_not_fit(rich, pupils):
    with pytest.raises(ValueError, match="formula cannot be evaluated on X"):
        rich.transform(pupils.assign(x="high"))
    splines = design_of("y ~ bs(age, df=4)", pupils)
    with pytest.raises(ValueError, match=r"formula cannot be evaluated on X.*extrapolation"):
        splines.transform(pupils.assign(age=20.0))


def test_formulaic_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "formulaic", None)
    with pytest.raises(ImportError, match=r'pip install "skgroupvae\[formula\]"'):
        read_formula("y ~ x + (1 | school)")


def test_copies_give_the_same_columns(rich, pupils):
    few = pupils[pupils["x"] > 4.0]
    np.testing.assert_array_equal(copy.deepcopy(rich).transform(few), rich.transform(few))


# --- what may be evaluated


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "(lambda: x)()",
        "log(x).mean()",
        "x.mean()",
        "x[0]",
        "np.load(x)",
        "np.log(x, y)",
        "np.log(x, out=y)",
        "np.log",
        "exp(*x)",
        "bs(**x)",
        "bs(x, _state={'knots': []})",
        "bs(x, _state=1)",
        "bs(x, df=len('abc'))",
        "hashed(x, 3, hash_func=I)",
        "Q('x')",
        "C(x, contr.custom([1]))",
        "C(x, I)",
        "__FORMULAIC_CONTEXT__",
        "I(2 ** 9 ** 9)",
        "I('a' * 9)",
        "I([0] * 9)",
        "[i for i in x]",
        "(y := x)",
        "f'{x}'",
        "x if y else x",
        "log(`x`)",
        # formulaic quotes such texts once more, so that they would end early and the rest run
        """bs(x, extrapolation='a"+print(1)+"')""",
        r"bs(x, extrapolation='\\')",
        "I(x == 'it\"s')",
        "(" * 500 + "x" + ")" * 500,
    ],
)
def test_expressions_that_are_not_listed_are_refused(text):
    with pytest.raises(ValueError, match="formula has"):
        read_expression(text)


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("log(x + 1)", ["x"]),
        ("I(x ** (1 / 2) - -z * 3.5)", ["x", "z"]),
        ("np.maximum(x, np.abs(z))", ["x", "z"]),
        ("C(sex, Treatment('M'), levels=['M', 'F'])", ["sex"]),
        ("C(sex, contr.treatment(base='M'))", ["sex"]),
        ("bs(x, knots=(1, -2.5), include_intercept=True)", ["x"]),
        ("(sex == 'M') & (x > 3)", ["sex", "x"]),
    ],
)
def test_expressions_that_are_listed_give_their_columns(text, columns):
    assert read_expression(text).columns == columns


def test_every_listed_call_works():
    """None of the list is a name that formulaic does not know."""
    with pytest.raises(ValueError, match="may call only") as caught:
        read_expression("foo(x)")
    listed, alone = str(caught.value).split("only ")[1].split(";")[0].split(", and of columns alone ")
    settings = {"cr": ", df=4", "cs": ", df=4", "cc": ", df=4"}
    calls = [f"{name}(x{settings.get(name, '')})" for name in listed.split(", ")]
    two = {"np.minimum", "np.maximum", "np.power", "np.arctan2", "np.hypot"}
    calls += [f"{name}(x, x)" if name in two else f"{name}(x)" for name in alone.split(", ")]
    codings = ["Treatment('b')", "Sum", "Helmert", "Diff", "Poly"]
    codings += [f"contr.{name}" for name in ("treatment", "sum", "helmert", "diff", "poly", "SAS")]
    calls += [f"C(g, {coding})" for coding in codings]
    table = pd.DataFrame({"x": np.linspace(0.1, 0.9, 20), "g": list("abcd") * 5})
    for call in calls:
        design = design_of(f"~ {call}", table)
        assert design.names[1].startswith(call.split("(")[0])
        np.testing.assert_array_equal(design.transform(table[3:4]), design.transform(table)[3:4])
    assert len(calls) > 40


@pytest.mark.parametrize("method", ["python", "literal", "eval"])
def test_no_formula_from_a_file_makes_anything_run_that_is_not_listed(method, rich, pupils, tmp_path):
    trace = tmp_path / "trace"
    code = f"open('{trace}', 'w')"
    with pytest.raises(ValueError, match="formula has"):
        Formula("y", [[["1", "literal"]], [[code, method]]], [])
    with pytest.raises(ValueError, match="may call only"):
        read_formula(f"y ~ {code} + (1 | school)")
    with pytest.raises(ValueError, match="may call only"):
        read_formula(f"y ~ x + ({code} | school)")
    assert not trace.exists()


def test_a_lookup_is_a_column_and_nothing_else(pupils, tmp_path):
    trace = tmp_path / "trace"
    formula = Formula("y", [[["1", "literal"]], [[f"open('{trace}', 'w')", "lookup"]]], [])
    with pytest.raises(ValueError, match="formula names"):
        formula.split(pupils, None, None)
    assert not trace.exists()


def test_values_from_a_file_are_checked(rich):
    plain = Formula("y", [[["1", "literal"]], [["x", "lookup"]]], [[[1], ["school"]]])
    assert plain == read_formula("y ~ x + (x | school)")
    for terms in ([2], [-1], [0], ["x"], [True]):
        with pytest.raises(ValueError, match="formula has the random terms"):
            Formula("y", [[["1", "literal"]], [["x", "lookup"]]], [RandomPart(terms, ["school"])])
    with pytest.raises(TypeError, match="formula must be a Formula, got str"):
        dataclasses.replace(rich, formula="y ~ x")
