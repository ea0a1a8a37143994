"""The viewer of trajectories."""

import os

from flytekit.types.file import FlyteFile

from steptool.artifacts.metrics import say
from tasks.runtime.artifacts import Parquet, download, make_folder
from tasks.runtime.stage import stage


@stage("view")
def write_page(
    title: str,
    queries: Parquet,
    trajectories: Parquet,
    rewards: Parquet | None,
    advantages: Parquet | None,
    trajectories_b: Parquet | None,
    rewards_b: Parquet | None,
    advantages_b: Parquet | None,
    output: str,
) -> FlyteFile:
    """Write the viewer for one set of trajectories, or for two beside each other, and put it in place."""
    from steptool.report.viewer import EpisodeFiles, write_viewer
    from steptool.storage.publishing import deliver

    files = [(trajectories, rewards, advantages), (trajectories_b, rewards_b, advantages_b)]
    sources = [EpisodeFiles(download(t), r and download(r), a and download(a)) for t, r, a in files if t]
    page = write_viewer(make_folder("viewer") / "viewer.html", download(queries), sources, title)
    folder, name = os.path.split(output)
    place = deliver(page, folder or ".", name)
    say("view", f"{place}: {page.stat().st_size / 1e6:,.1f} MB")
    return FlyteFile(place)
