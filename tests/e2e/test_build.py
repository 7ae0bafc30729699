"""From nothing to everything fresh, and nothing to do the second time."""

from tiny_project import Project, output_folders

DATASETS, EXPERTS, MODELS = ("photos", "other"), ("edsr", "compact"), ("fusion", "student", "alone")
EVERYTHING = {
    *(f"bronze/images[{s}]" for s in (*DATASETS, "bench")),
    "bronze/benchmarks",
    *(
        f"{asset}[{d}]"
        for d in DATASETS
        for asset in ("bronze/overlap", "silver/patches", "gold/pairs")
    ),
    *(f"expert/{e}/{what}" for e in EXPERTS for what in ("weights", "evaluation[bench]", "cost")),
    *(f"expert/{e}/cache[{d}]" for e in EXPERTS for d in DATASETS),
    *(f"model/fusion/cache[{d}]" for d in DATASETS),
    *(
        f"model/{m}/{what}"
        for m in MODELS
        for what in ("checkpoint", "evaluation[bench]", "cost", "export", "release")
    ),
    "evaluation/baselines[bench]",
    "evaluation/leaderboard",
}


def test_everything_is_missing_before_the_first_build(empty: Project) -> None:
    status = empty.status()
    assert set(status) == EVERYTHING
    assert {row["state"] for row in status.values()} == {"missing"}
    assert all(row["why"] and row["path"] is None for row in status.values())
    assert empty.runs() == 0


def test_a_build_from_nothing_makes_every_output(built: Project) -> None:
    status = built.status()
    assert set(status) == EVERYTHING
    assert {(row["state"], row["why"]) for row in status.values()} == {("fresh", "")}
    assert {row["path"] for row in status.values()} == {str(f) for f in output_folders(built.root)}
    assert all(len(row["data_version"]) == 32 for row in status.values())
    assert f"Made {len(EVERYTHING)} outputs." in (built.folder / "built.log").read_text()


def test_a_second_build_runs_no_step_and_starts_no_run(built: Project) -> None:
    before = built.runs()
    assert before > 0
    assert built.srd("build").stdout == "Everything is fresh: no step ran.\n"
    assert built.to_make() == {}
    assert built.runs() == before
