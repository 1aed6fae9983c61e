"""The findings of `decdpo theory` as a page for people."""

from collections.abc import Mapping
from typing import Any

_TERMS = {
    "initial": "what R rounds of descent leave",
    "noise": "gradient noise",
    "drift": "unlike users",
    "drift_noise": "noise between agents",
    "participation": "drawing participants",
    "staleness": "late messages",
}


def table(result: Mapping[str, Any], top: int) -> str:
    """Return the page: constants, prediction, measured gradients, the ``top`` best choices."""
    lines = [f"{result['source']}", "", *_constants(result)]
    lines += ["", *_prediction(result["prediction"], result.get("measured"))]
    lines += ["", *_advice(result["advice"], top)]
    return "\n".join(lines)


def _constants(result: Mapping[str, Any]) -> list[str]:
    at_start, later = result["constants"], result.get("checkpoint")
    heads = ["at the start"] + ([f"after round {later['round']}"] if later else [])
    columns = [at_start] + ([later["constants"]] if later else [])
    c = at_start
    lines = [
        f"{c['num_agents']} agents, {c['num_params']:,} parameters, {c['num_pairs']:,} training "
        f"pairs, batches of {c['batch_size']}",
        f"{'constant':<34}" + "".join(f"{head:>18}" for head in heads),
    ]
    for label, key in (
        ("L, smoothness", "smoothness"),
        ("L_max, of the least smooth agent", "smoothness_max"),
        ("loss L(x)", "loss"),
        ("||grad L(x)||^2", "gradient_sq"),
        ("kappa^2, heterogeneity", "kappa_sq"),
        ("zeta^2, noise of a batch", "zeta_sq"),
        ("zeta^2 of a single pair", "pair_variance"),
    ):
        cells = (f"{_number(column[key]):>18}" for column in columns)
        lines.append(f"{label:<34}" + "".join(cells))
    lines.append(f"{'L(x_0) - L*, the initial gap':<34}{_number(c['gap']):>18}")
    lines += [f"  L, L_max: {c['smoothness_is']}", f"  L*: {c['optimum_is']}"]
    lines.append("  the bounds take kappa^2 and zeta^2 of the start for the whole run")
    return lines


def _prediction(found: Mapping[str, Any], measured: Mapping[str, float] | None) -> list[str]:
    about = [f"E = {found['local_steps']}", f"eta = {found['lr']:g}", f"R = {found['rounds']}"]
    if "rho" in found:
        about.insert(0, f"{found['graph']}, rho = {found['rho']:.4f} a round")
    if "participants" in found:
        about.insert(0, f"S = {found['participants']}")
    lines = [f"predicted bound on the mean of ||grad L(x_bar)||^2, {found['formula']}:"]
    lines.append("  " + ", ".join(about))
    for name, bound in found.items():
        if not name.startswith("bound"):
            continue
        if name != "bound":
            lines.append(f"  with messages {name.split('_')[1]} rounds late:")
        for term, value in bound["terms"].items():
            lines.append(f"    {_TERMS[term]:<32}{_number(value):>14}")
        lines.append(f"    {'total':<32}{_number(bound['total']):>14}")
        if found["lr"] > bound["step_limit"]:
            lines.append(
                f"    claimed only up to eta = {_number(bound['step_limit'])}: here it is a guess"
            )
    if not found["applies"]:
        lines.append("  the bound is not claimed for these settings:")
        lines += [f"    {reason}" for reason in found["not_covered"]]
    if measured:
        lines += _measured(measured)
    stable = found["largest_stable_step"]
    if stable is None:
        lines.append("largest stable step: the theory has none for this method")
    else:
        lines.append(f"largest stable step on quadratics so curved: eta < {_number(stable)}")
    return lines


def _measured(found: Mapping[str, float]) -> list[str]:
    lines = [
        f"  measured: mean {_number(found['mean'])} over {found['rounds']} rounds, at the start "
        f"{_number(found['first'])}, last {_number(found['last'])}, from {found['records']} records"
    ]
    if found["pairs"] < found["of_pairs"]:
        lines.append(
            f"    on {found['pairs']:,} of the {found['of_pairs']:,} training pairs "
            "(log.gradient_pairs), not on those of the constants"
        )
    return lines


def _advice(choices: list[Mapping[str, Any]], top: int) -> list[str]:
    """Return the best choices, the best of every method and graph, and how to train it."""
    if not choices:
        return ["the budget does not pay for a single round of any choice"]
    timed = any(choice["seconds"] for choice in choices)
    best = list({(c["method"], c["graph"]): c for c in reversed(choices)}.values())[::-1]
    lines = ["what the bounds prefer on the budget, best first:", _head(timed)]
    lines += [_row(choice, timed) for choice in choices[:top]]
    if len(choices) > top:
        lines.append(f"... and {len(choices) - top} more (--top)")
    if len(best) > 1:
        lines += ["the best of each method and graph:", _head(timed)]
        lines += [_row(choice, timed) for choice in best]
    for method in dict.fromkeys(choice["method"] for choice in best):
        first = next(choice for choice in best if choice["method"] == method)
        lines.append(f"to train the first of {method}: --set " + " --set ".join(first["set"]))
    return lines


def _head(timed: bool) -> str:
    seconds = f"{'seconds':>10}" if timed else ""
    return (
        f"{'method':<8}{'graph':<21}{'E':>4}{'S':>6}{'eta':>10}{'rounds':>8}{'MB':>10}"
        f"{seconds}{'bound':>11}  largest term"
    )


def _row(choice: Mapping[str, Any], timed: bool) -> str:
    bound = choice["bound"]
    largest = max(bound["terms"], key=bound["terms"].get)
    seconds = f"{choice['seconds']:>10.4g}" if timed else ""
    return (
        f"{choice['method']:<8}{choice['graph'] or '-':<21}{choice['local_steps']:>4}"
        f"{choice['participants']:>6}{_number(bound['step']):>10}{choice['rounds']:>8}"
        f"{choice['bytes'] / 1e6:>10.4g}{seconds}{_number(bound['total']):>11}  {_TERMS[largest]}"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
