"""Tables 1 and 2 of the CxVAE paper, with the figure of the exact posterior beside every figure.

    python examples/paper_tables.py --quick --protocol paper-data      # minutes
    python examples/paper_tables.py --protocol all --csv tables.csv --figures figures

Protocols: ``published`` does what the authors' code did (data without noise, noise variance fixed at 0.5,
errors of posterior draws); ``paper-data`` has the same data, learns the noise and judges posterior means;
``stated`` has the data that the paper describes, with noise 1.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import cpu_count
from paper_experiment import EXACT, N_TEST_GROUPS, PROTOCOLS, TABLE_1, TABLE_2, run_all

# Figures as reported in the paper, mean and standard deviation of 7 runs. The reconstruction errors of ML-VAE
# and GVAE are not legible in our copy of Table 1; that of CxVAE is in Table 2.
PAPER_TABLE_1 = {
    "CxVAE": {
        "reconstruction": (52.1, 0.6),
        "translation": (219.5, 4.7),
        "u_pred": (53.3, 1.2),
        "v_pred": (30.2, 0.3),
    },
    "ML-VAE": {"translation": (738.8, 13.6), "u_pred": (63.4, 1.0), "v_pred": (63.0, 0.3)},
    "GVAE": {"translation": (742.9, 14.4), "u_pred": (63.1, 0.9), "v_pred": (63.0, 0.4)},
    "GVAE + reg": {
        "reconstruction": (70.0, 1.4),
        "translation": (735.3, 13.0),
        "u_pred": (63.8, 1.1),
        "v_pred": (63.0, 0.5),
    },
}
_MEASURES_OF_PAPER = ("reconstruction", "translation", "u_pred", "v_pred")
PAPER_TABLE_2 = {
    name: dict(zip(_MEASURES_OF_PAPER, values, strict=True))
    for name, values in {
        "CxVAE": ((52.1, 0.6), (219.5, 4.7), (53.3, 1.2), (30.2, 0.3)),
        "u: average": ((53.6, 2.2), (224.7, 10.0), (53.4, 1.1), (30.9, 1.1)),
        "u: product": ((54.9, 2.8), (229.2, 7.8), (53.4, 0.9), (31.4, 1.0)),
        "v: unconditional": ((72.3, 3.6), (729.0, 15.1), (63.6, 1.2), (63.0, 0.3)),
        "regularizer: none": ((54.1, 1.9), (235.5, 16.5), (53.6, 1.4), (31.6, 1.5)),
        "regularizer: instance": ((53.7, 1.2), (225.7, 5.7), (53.5, 1.1), (30.8, 0.6)),
    }.items()
}
TABLES = {"Table 1": (TABLE_1, PAPER_TABLE_1), "Table 2": (TABLE_2, PAPER_TABLE_2)}

# name: (title, factor of the printed figure). The paper reports 100 times the mean squared error.
MEASURES = {
    "reconstruction": ("reconstruction error", 100.0),
    "translation": ("translation error", 100.0),
    "u_pred": ("u-pred, (mu, sigma)", 100.0),
    "u_pred_squared": ("u-pred, (mu, sigma²)", 100.0),
    "v_pred": ("v-pred", 100.0),
    "log_likelihood": ("log-likelihood, nats per row", 1.0),
}


def summarize(results: pd.DataFrame) -> pd.DataFrame:
    """One row per protocol, table, model and measure, in the paper's units.

    ``excess`` is in percent of the exact figure, except for the log-likelihood, where it is in nats.
    """
    records = []
    for protocol, of_protocol in results.groupby("protocol", sort=False):
        runs = {name: part.set_index("seed").sort_index() for name, part in of_protocol.groupby("model")}
        for table, (models, paper) in TABLES.items():
            for model, measure in itertools.product(models, MEASURES):
                where = {"protocol": protocol, "table": table, "model": model, "measure": measure}
                printed = paper.get(model, {}).get(measure, (np.nan, np.nan))
                compared = _compare(runs[model], runs[EXACT], measure, printed)
                records.append(where | {"in_paper": model in paper} | compared)
    return pd.DataFrame(records)


def _compare(
    ours: pd.DataFrame, exact: pd.DataFrame, measure: str, paper: tuple[float, float]
) -> dict[str, float]:
    """Entries for one model and measure, from the results by seed of the model and the exact posterior."""
    factor = MEASURES[measure][1]
    value, limit = ours[measure].mean(), exact[measure].mean()
    if measure == "log_likelihood":
        excess, unit = value - limit, 1.0
    else:
        # Without noise the exact reconstruction is the row itself up to rounding: no percentages.
        unit = 100.0 / limit if limit > 1e-12 else np.nan
        excess = (value - limit) * unit
    record = {
        "ours": factor * value,
        "ours_sd": factor * ours[measure].std(ddof=1),
        "paper": paper[0],
        "paper_sd": paper[1],
        "exact": factor * limit,
        "excess": excess,
        "standard_error": np.nan,
        "excess_standard_error": np.nan,
        "noise_scale": ours.noise_scale.mean(),
        "fit_seconds": ours.fit_seconds.mean(),
        "n_seeds": len(ours),
    }
    if measure == "translation":
        # Of the mean over seeds, whose test groups are independent.
        record["standard_error"] = factor * _standard_error_of_mean(ours.translation_se)
        record["excess_standard_error"] = unit * _standard_error_of_mean(ours.translation_excess_se)
    return record


def _standard_error_of_mean(by_seed: pd.Series) -> float:
    return float(np.sqrt((by_seed**2).sum()) / len(by_seed))


def print_table(summary: pd.DataFrame, protocol: str, table: str, notes: list[str]) -> None:
    part = summary[(summary.protocol == protocol) & (summary.table == table)]
    print(f"\n{table}, protocol {protocol}: {PROTOCOLS[protocol].description}.")
    print(
        f"{part.n_groups.iloc[0]:,} training groups, {N_TEST_GROUPS:,} test groups; "
        f"mean ± standard deviation over seeds ({part.n_seeds.iloc[0]})."
    )
    for measure, (title, factor) in MEASURES.items():
        rows = part[part.measure == measure]
        heading = title if factor == 1.0 else f"{title} x {factor:g}"
        last = "   std. error" if measure == "translation" else ""
        print(f"\n{heading:32s}{'ours':>16s}{'paper':>16s}{'exact':>10s}{'excess':>19s}{last}")
        for row in rows.itertuples():
            print(_line(row, measure))
    print()
    for note in notes:
        print(textwrap.fill(note, 110, initial_indent="- ", subsequent_indent="  "))


def _line(row: object, measure: str) -> str:
    digits = 4 if measure == "log_likelihood" else 1
    name = row.model if row.in_paper else f"{row.model} *"
    ours = _plus_minus(row.ours, row.ours_sd, digits)
    paper = _plus_minus(row.paper, row.paper_sd, 1)
    if np.isnan(row.excess):
        excess = "-"
    elif measure == "log_likelihood":
        excess = f"{row.excess:+.4f}"
    else:
        excess = _plus_minus(row.excess, row.excess_standard_error, 1, sign="+") + " %"
    error = f"{row.standard_error:13.1f}" if measure == "translation" else ""
    return f"  {name:30s}{ours:>16s}{paper:>16s}{row.exact:10.{digits}f}{excess:>19s}{error}"


def _plus_minus(value: float, spread: float, digits: int, sign: str = "") -> str:
    if np.isnan(value):
        return "-"
    return f"{value:{sign}.{digits}f}" + ("" if np.isnan(spread) else f" ± {spread:.{digits}f}")


def make_notes(summary: pd.DataFrame, protocol: str, table: str, options: dict) -> list[str]:
    """Why these figures differ from the paper's, as far as we know."""
    part = summary[(summary.protocol == protocol) & (summary.table == table)]
    cxvae = part[part.model == "CxVAE"].set_index("measure")
    notes = []
    if options:
        notes.append(f"Fits with max_epochs={options['max_epochs']}, not with the default of the package.")
    notes.append(_note_on_paper(protocol, cxvae))
    notes.append(
        "exact: the exact posterior under the same noise on the same rows, judged the same way; excess: how "
        "far ours is above it. On average no method has a smaller error of posterior means or a larger "
        "log-likelihood, but u-pred and v-pred include the noise of the network that judges them: a few "
        "percent of u-pred, a tenth of that with sigma². The reconstruction error has no such limit: codes "
        "that copy a row reconstruct it perfectly."
    )
    notes.append(
        "sigma enters squared, so its sign is not identified: u-pred of (mu, sigma) stays above 50 for every "
        "method. (mu, sigma²) has no such floor."
    )
    if table == "Table 1":
        notes.append(
            "In the authors' code the product and average encoders ran Deep Sets instead: the paper's rows "
            "for ML-VAE and GVAE are of other models than their names say. Ours are of these models."
        )
    else:
        notes.append(
            "In the authors' code the product and average encoders ran Deep Sets instead: the paper's u rows "
            'are CxVAE again. Ours are of these encoders. *: not in the paper; "v: start at the decoder" is '
            "the default of GroupVAE."
        )
    notes.append(
        "The authors' regularizer has sums where eq. 3 has means, does not leave out x_k, bounds the critic "
        "and has weight 1,000; ours follows eq. 3, with weight 1."
    )
    notes.append(
        "Our log-likelihood is an importance-weighted bound with draws common to all groups: where q fits "
        "poorly, it is off by hundredths of a nat, in either direction."
    )
    return notes


def _note_on_paper(protocol: str, cxvae: pd.DataFrame) -> str:
    row = cxvae.loc["translation"]
    if protocol != "published":
        return (
            "The paper's column is not comparable: it has errors of posterior draws under a noise variance "
            "fixed at 0.5, which alone put translation near 270. CxVAE learned a noise scale of "
            f"{row.noise_scale:.2f}; that of the data is {PROTOCOLS[protocol].data_noise:g}."
        )
    note = "The paper's column is comparable: the same data, likelihood and errors of posterior draws."
    if row.paper < row.exact:
        note += (
            f" Its translation error of CxVAE, {row.paper:g}, is below the {row.exact:.1f} of exact draws: "
            "errors of draws favor a posterior that is too narrow, so exact draws are not a lower limit."
        )
    return note


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 seeds, 4,096 groups and short fits")
    parser.add_argument("--protocol", choices=[*PROTOCOLS, "all"], default="all")
    parser.add_argument("--seeds", type=int, help="number of seeds (default 7)")
    parser.add_argument("--n-groups", type=int, help="training groups (default 32,768)")
    parser.add_argument("--max-epochs", type=int, help="epochs per fit (default: that of the package)")
    parser.add_argument("--jobs", type=int, default=min(8, cpu_count()), help="processes (default: cores)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the tables to a CSV file too")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="draw Figures 2 to 5 (needs extra fits)")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    protocols = list(PROTOCOLS) if arguments.protocol == "all" else [arguments.protocol]
    seeds = range(arguments.seeds or (2 if arguments.quick else 7))
    n_groups = arguments.n_groups or (4096 if arguments.quick else 32768)
    options = {} if arguments.max_epochs is None else {"max_epochs": arguments.max_epochs}
    if arguments.quick and not options:
        # About 400 steps: an epoch has 8 of them, or one per 256 groups where that is more.
        options["max_epochs"] = max(1, 400 // max(8, n_groups // 256))

    def report(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    start = time.perf_counter()
    results = run_all(protocols, seeds, n_groups, options, arguments.jobs, report)
    summary = summarize(results).assign(n_groups=n_groups)
    for protocol in protocols:
        for table in TABLES:
            print_table(summary, protocol, table, make_notes(summary, protocol, table, options))
    print(f"\n{n_groups:,} training groups, {time.perf_counter() - start:.0f} s, {arguments.jobs} processes.")
    if arguments.csv:
        summary.to_csv(arguments.csv, index=False, float_format="%.6g")
    if arguments.figures:
        # Imported here so that the tables do not need matplotlib.
        from paper_figures import draw_figures

        for file in draw_figures(arguments.figures, protocols[0], seeds, n_groups, options, arguments.jobs):
            report(f"wrote {file}")


if __name__ == "__main__":
    main()
