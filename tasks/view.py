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
    page_size: int,
    output: str,
) -> FlyteFile:
    """Write the viewer for one set of trajectories, or for two beside each other, and put its pages in place."""
    from steptool.report.viewer import write_viewer
    from steptool.report.viewer_pages import EpisodeFiles
    from steptool.storage.transfer import deliver

    files = [(trajectories, rewards, advantages), (trajectories_b, rewards_b, advantages_b)]
    sources = [EpisodeFiles(download(t), r and download(r), a and download(a)) for t, r, a in files if t]
    folder, name = os.path.split(output)
    first = write_viewer(make_folder("viewer") / name, download(queries), sources, title, page_size)
    for page in sorted(first.parent.iterdir(), key=lambda page: page == first):  # last, because it links to the others
        place = deliver(page, folder or ".", page.name)
        say("view", f"{place}: {page.stat().st_size / 1e6:,.1f} MB")
    return FlyteFile(place)
