"""Formulas of mixed models: what the text says, which expressions it may hold, and the columns it gives."""

from skgroupvae.formulas.design import FormulaDesign
from skgroupvae.formulas.text import Formula, read_formula

__all__ = ["Formula", "FormulaDesign", "read_formula"]
