"""All five scenarios on generated data, or on a folder of real data, as one HTML page.

python -m jaxrec.scenarios --out report.html
python -m jaxrec.scenarios --out report.html --data path/to/datasets
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from jaxrec import scenarios
from jaxrec.scenarios._folders import generated, real
from jaxrec.scenarios._scenario import plots


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", default="report.html", help="the page to write")
    parser.add_argument("--data", help="folder that holds folders of data sets; generated data without it")
    parser.add_argument("--only", help="names of scenarios, joined by commas")
    parser.add_argument("--seed", type=int, default=0, help="of data, splits and training")
    options = parser.parse_args(arguments)
    names = ("new_user", "new_item", "cross_platform", "long_tail", "cross_domain")
    only = options.only.split(",") if options.only else list(names)
    if not set(only) <= set(names):
        parser.error(f"expected names among {', '.join(names)}, got {options.only!r}")
    try:
        plots()  # or the page would fail after all has been run
    except ModuleNotFoundError as error:
        sys.exit(str(error))
    out = Path(options.out)
    if out.is_dir():
        parser.error(f"expected a file to write the page to, and {options.out!r} is a folder")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        tempfile.NamedTemporaryFile(dir=out.parent).close()  # as the page begins
    except OSError as error:
        parser.error(f"the page cannot be written to {options.out!r} ({error}); name another file")
    try:
        cases, missing = (generated(options.seed), {}) if options.data is None else real(Path(options.data))
    except ValueError as error:
        parser.error(str(error))
    results, about, failed = [], [], []
    for name, reason in missing.items():
        if name in only:
            about.append(f"{name} was left out: {reason}.")
            print(f"{name} is left out: {reason}.\n", flush=True)
    for case in cases:
        if case.name not in only:
            continue
        start = time.perf_counter()
        print(f"{case.name}: {case.words} ...", flush=True)
        try:
            results.append(getattr(scenarios, case.name)(*case.frames, seed=options.seed))
        except Exception as error:  # whatever it is, such as a lack of memory: the others are not lost
            failed.append(case.name)
            about.append(f"{case.name} failed: {type(error).__name__}: {error}")
            print(f"{about[-1]}\n", flush=True)
            continue
        about.append(f"{results[-1].title}: {case.words}.")
        print(f"{results[-1]}\n{time.perf_counter() - start:.0f} s\n", flush=True)
    if not results:
        sys.exit("No scenario was run." if not failed else f"No scenario succeeded: {', '.join(failed)}.")
    scenarios.write_html(results, options.out, about=" ".join(dict.fromkeys(about)))
    print(f"Written to {options.out}")
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
