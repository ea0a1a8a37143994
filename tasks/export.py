"""The task that exports trajectories in forms that other tools read."""

from flytekit.types.file import FlyteFile

from steptool.artifacts.metrics import say
from steptool.data.export import Form
from tasks.runtime.artifacts import Parquet, download, download_all, make_folder
from tasks.runtime.stage import stage


@stage("export")
def export_trajectories(
    trajectories: Parquet, queries: Parquet, form: Form, output: str, more_trajectories: list[Parquet] | None
) -> FlyteFile:
    """Write the trajectories of several files in a form and put the new file into a folder or url."""
    from steptool.data.export import export
    from steptool.storage.transfer import deliver

    result = export(
        download_all([trajectories, *(more_trajectories or [])]), download(queries), form, make_folder("exported")
    )
    place = deliver(result.path, output, result.path.name)
    say("export", f"{place}: {', '.join(f'{name} {count}' for name, count in result.counts.items())}")
    return FlyteFile(place)
