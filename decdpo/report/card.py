"""The card of an exported model: ``README.md`` beside it, which says where it comes from."""

from collections.abc import Mapping
from typing import Any

from decdpo.data.ingest.reports.printed import lines


def card(facts: Mapping[str, str], report: Mapping[str, Any], config: str, use: str) -> str:
    """Return the card as Markdown.

    facts : what the model is, by name. report : of the shards it was trained on; the agents' names
    are left out, which may be those of people. config : the configuration as TOML. use : how the
    model is loaded.
    """
    width = max(len(name) for name in facts)
    text = ["# A model trained by decdpo", ""]
    text += [f"    {name:<{width}}  {value}" for name, value in facts.items()]
    text += ["", "## Use", "", *(f"    {line}" for line in use.splitlines())]
    text += ["", "## Data", ""]
    if "sources" in report:
        nameless = [{**agent, "name": ""} for agent in report["agents"]]
        text += [f"    {line}".rstrip() for line in lines({**report, "agents": nameless})]
    elif report:
        text += [f"    {name}: {value}" for name, value in report.items() if name != "agents"]
    else:
        text.append("    the shards have no report")
    text += ["", "## Configuration", "", "```toml", config.strip(), "```"]
    return "\n".join(text) + "\n"
