"""Every check of the repository: `nox` runs lint, types, tests and integration; `nox --list` names the rest."""

from __future__ import annotations

import subprocess
from pathlib import Path

import nox

ROOT = Path(__file__).parent
PACKAGES = ("data3d", "backbones", "ssl", "detectors", "metrics", "girih")
LIBRARIES = PACKAGES[:-1]
WANT_SAMPLES = ("metrics", "girih")
CONSTRAINTS = str(ROOT / "constraints.txt")

nox.options.sessions = ["lint", "types", "tests", "integration"]
nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = True
nox.options.reuse_venv = "yes"


def project(package: str) -> dict:
    return nox.project.load_toml(ROOT / "packages" / package / "pyproject.toml")


def module(package: str) -> str:
    return "girih" if package == "girih" else f"girih_{package}"


def pip_install(session: nox.Session, *args: str) -> None:
    """Install under constraints.txt; the build back-end comes first so that six packages build in seconds."""
    session.install("-q", "-c", CONSTRAINTS, "hatchling", "editables")
    session.install("-q", "-c", CONSTRAINTS, "--no-build-isolation", *args)


def sources(*packages: str) -> list[str]:
    """The packages as pip arguments; the program needs its five siblings beside it."""
    wanted = PACKAGES if "girih" in packages else packages
    extras = {"girih": "[augment]"}
    return [f"./packages/{name}{extras.get(name, '')}" for name in wanted]


def everything(session: nox.Session) -> None:
    """All six packages, the third party's of the tests, and what tests need."""
    pip_install(session, *sources(*PACKAGES), "./tests/plugin_example", *test_groups(), "nox")


def without_dependencies(session: nox.Session, *packages: str) -> None:
    """Install what the group `peers-no-deps` names, without what it would bring."""
    for package in packages:
        if lines := project(package).get("dependency-groups", {}).get("peers-no-deps"):
            session.install("-q", "-c", CONSTRAINTS, "--no-deps", *lines)


def test_groups() -> list[str]:
    """What the tests of all packages need, each once."""
    lines = [line for name in PACKAGES for line in nox.project.dependency_groups(project(name), "test")]
    return list(dict.fromkeys(lines))


def pytest(session: nox.Session, *args: str, typed: str | None = None, env: dict[str, str] | None = None) -> None:
    """Run pytest, with run-time checks of shapes and types in `typed` (comma-separated modules) if given."""
    checks = [f"--jaxtyping-packages={typed},beartype.beartype"] if typed else []
    session.run("python", "-m", "pytest", "-q", *checks, *args, *session.posargs, env=env)


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff, and import-linter for the one rule: the libraries never import each other."""
    session.install("-q", "-c", CONSTRAINTS, "ruff", "import-linter")
    failed = []
    paths = ":".join(str(ROOT / "packages" / name / "src") for name in PACKAGES)
    for command in (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["lint-imports", "--no-cache"]):
        try:  # all linters report before the session fails
            session.run(*command, env={"PYTHONPATH": paths})
        except nox.command.CommandFailed:
            failed.append(command[0])
    if failed:
        session.error(f"failed: {', '.join(failed)}")


@nox.session
def types(session: nox.Session) -> None:
    """mypy --strict over the six packages."""
    pip_install(session, "mypy", *sources(*PACKAGES), *test_groups())
    session.run("mypy")


@nox.session
@nox.parametrize("package", PACKAGES)
def tests(session: nox.Session, package: str) -> None:
    """One package's tests, in an environment that has only what that package declares."""
    pip_install(session, *sources(package))
    session.run("python", "-c", f"import {module(package)}")  # works without the test group
    session.install("-q", "-c", CONSTRAINTS, *nox.project.dependency_groups(project(package), "test"))
    if package in WANT_SAMPLES:
        # Where the registry is away, the tests that need the samples say so: as skips, or as failures if required.
        fetch = ("python", "-m", "girih.samples")
        session.run(*fetch, env={"PYTHONPATH": str(ROOT / "packages/girih/src")}, success_codes=[0, 1])
    pytest(session, f"packages/{package}/tests", "-m", "not long", typed=module(package))


@nox.session
def integration(session: nox.Session) -> None:
    """The pieces together: tests/ with all six packages."""
    everything(session)
    pytest(session, "tests", "-m", "not long")


@nox.session
def examples(session: nox.Session) -> None:
    """Run every script under examples/."""
    pip_install(session, *sources(*PACKAGES))
    for script in sorted((ROOT / "examples").glob("[0-9]*.py")):
        session.run("python", str(script))


@nox.session
@nox.parametrize("package", ("data3d", "metrics"))
def floor(session: nox.Session, package: str) -> None:
    """One package's tests on the oldest dependencies it declares."""
    floors = [
        line.replace(">=", "==").split(",")[0].split(";")[0] for line in project(package)["project"]["dependencies"]
    ]
    session.install("-q", "hatchling")
    session.install("-q", *floors)
    session.install("-q", "--no-build-isolation", "--no-deps", f"./packages/{package}")
    group = nox.project.dependency_groups(project(package), "test")
    session.install(
        "-q", *floors, *(f"torch=={pinned('torch')}" if line.startswith("torch") else line for line in group)
    )
    pytest(session, f"packages/{package}/tests", "-m", "not long")


@nox.session
def long(session: nox.Session) -> None:
    """What takes longer than a few minutes: trainings with controls, full matrices."""
    everything(session)
    for package in PACKAGES:
        session.run("python", "-m", "pytest", "-q", f"packages/{package}/tests", "-m", "long", success_codes=[0, 5])
    session.run("python", "-m", "pytest", "-q", "tests", "-m", "long", success_codes=[0, 5])


@nox.session
@nox.parametrize("package", ("data3d", "backbones", "detectors", "metrics"))
def peers(session: nox.Session, package: str) -> None:
    """Differential tests of one package against other people's."""
    pip_install(session, *sources(package), *nox.project.dependency_groups(project(package), "peers"))
    without_dependencies(session, package)
    env = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # napari brings plugins that warn on import
    session.run("python", "-m", "pytest", "-q", f"packages/{package}/tests/peers", env=env)


@nox.session
def models(session: nox.Session) -> None:
    """The store's metadata in the eyes of ome-zarr-models, which wants an older pydantic than others do."""
    pip_install(session, *sources("data3d"), *nox.project.dependency_groups(project("data3d"), "models"))
    session.run("python", "-m", "pytest", "-q", "packages/data3d/tests/models")


@nox.session
def bench(session: nox.Session) -> None:
    """Run the scripts under benchmarks/ (all, or those named after --), beside the packages they compare with."""
    groups = [g for name in PACKAGES if "bench" in (g := project(name)).get("dependency-groups", {})]
    lines = [line for found in groups for line in nox.project.dependency_groups(found, "bench")]
    pip_install(session, *sources(*PACKAGES), *dict.fromkeys(lines))
    without_dependencies(session, *PACKAGES)
    for script in session.posargs or sorted(path.stem for path in (ROOT / "benchmarks").glob("[a-z]*.py")):
        session.run("python", str(ROOT / "benchmarks" / f"{script}.py"))


@nox.session
def demo(session: nox.Session) -> None:
    """The main job on real scans: prepare, pre-train, fine-tune, predict, score; ends with demo/report.html."""
    pip_install(session, *sources(*PACKAGES))
    session.run("girih", "demo", "--out", "demo", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into docs/_build."""
    pip_install(session, *sources(*PACKAGES), "sphinx", "myst-parser")
    session.run("sphinx-build", "-q", "-b", "html", "docs", "docs/_build")


@nox.session(venv_backend="none")
def changed(session: nox.Session) -> None:
    """Run only what a diff touches: `nox -s changed -- BASE` (default origin/main)."""
    base = session.posargs[0] if session.posargs else "origin/main"
    for name in selected(base):
        session.run("nox", "-s", name, external=True)


def selected(base: str) -> list[str]:
    """Sessions for the files that differ from `base`: lint, types, the packages' tests, integration, examples."""
    everything_changed = not base.strip("0")  # a service that knows no base sends zeros
    files = [] if everything_changed else git("diff", "--name-only", base) + git("ls-files", "-o", "--exclude-standard")
    root = [name for name in files if "/" not in name or name.startswith((".ci/", ".github/"))]
    everything_changed |= any(not name.endswith(".md") for name in root)
    touched = [p for p in PACKAGES if everything_changed or any(name.startswith(f"packages/{p}/") for name in files)]
    if touched and "girih" not in touched:
        touched.append("girih")  # the program is built from the libraries
    names = ["lint", "types", *(f"tests(package='{package}')" for package in touched)]
    if touched or any(name.startswith(("tests/", "README.md", "CONTRIBUTING.md")) for name in files):
        names.append("integration")
    if touched or any(name.startswith("examples/") for name in files):
        names.append("examples")
    return names


def git(*arguments: str) -> list[str]:
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


@nox.session(venv_backend="none")
def matrix(session: nox.Session) -> None:
    """Print the sessions for a diff as JSON, for a CI service to fan out: `nox -s matrix -- BASE`."""
    import json

    print(json.dumps(selected(session.posargs[0] if session.posargs else "origin/main")))


@nox.session
def release(session: nox.Session) -> None:
    """Build one package's sdist and wheel and check them: `nox -s release -- ssl`."""
    if not session.posargs or session.posargs[0] not in PACKAGES:
        session.error(f"name one package of {', '.join(PACKAGES)}")
    package = session.posargs[0]
    version = project(package)["project"]["version"]
    if f"## {version}" not in (ROOT / "packages" / package / "CHANGELOG.md").read_text():
        session.error(f"packages/{package}/CHANGELOG.md has no entry for {version}")
    session.install("-q", "build", "twine")
    session.run("python", "-m", "build", "--outdir", f"dist/{package}", f"packages/{package}")
    session.run("twine", "check", "--strict", *(str(p) for p in (ROOT / "dist" / package).glob(f"*{version}*")))
    session.log(
        f"next: git tag girih{'' if package == 'girih' else '-' + package}-v{version} && twine upload dist/{package}/*"
    )


def pinned(name: str) -> str:
    """The version of `name` in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return next(line.split("==")[1] for line in lines if line.startswith(f"{name}=="))
