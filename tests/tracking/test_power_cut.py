"""MLflow's SQLite store after a power cut: whole, with every epoch but the last, and the next run goes on in it."""

import random
import shutil
import sqlite3
from contextlib import closing

import pytest
from mlflow import MlflowClient

from image_classifier.core import files
from stages import train
from tests.helpers.disk import Disk, traced

CUTS = 100
EPOCHS = "SELECT count(*) FROM metrics WHERE key = 'val_loss'"


@pytest.mark.full
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace, which sees every write")
def test_a_power_cut_leaves_a_store_that_the_next_run_goes_on_in(project, capfd):
    store, journal, said = project / "mlflow.db", project / "mlflow.db-journal", project.parent / "said"
    with closing(sqlite3.connect(store)) as found:
        (before,) = found.execute(EPOCHS).fetchone()
    disk = Disk({str(store): store.read_bytes()})
    shutil.rmtree("models/checkpoint")
    calls = traced(project, ["-u", "-m", "stages.train"], said)
    calls = [call for call in calls if call.path in map(str, (store, journal, said))]
    assert sum(call.name == "fdatasync" for call in calls) > 20  # or nothing was seen

    moments, printed = random.Random(0), 0
    cuts = set(moments.sample(range(len(calls)), CUTS))
    for number, call in enumerate(calls):
        if call.path == str(said):
            printed += call.data.count(b"train: epoch ")  # after it was logged
        else:
            disk.apply(call)
        if number in cuts:
            left = disk.after_a_cut(moments)
            for path in (store, journal):
                path.unlink(missing_ok=True)
                if str(path) in left:
                    path.write_bytes(left[str(path)])
            with closing(sqlite3.connect(store)) as found:
                assert found.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                (kept,) = found.execute(EPOCHS).fetchone()
            assert printed - 1 <= kept - before <= printed + 1

    shutil.rmtree("models/checkpoint")
    train.main()  # on what the last cut left
    assert "warning" not in capfd.readouterr().err
    client = MlflowClient(f"sqlite:///{store}")
    experiment = client.get_experiment_by_name("image-classifier").experiment_id
    newest = client.search_runs([experiment], order_by=["attributes.start_time DESC"])[0]
    assert newest.info.status == "FINISHED" and newest.data.tags["model.sha256"] == files.sha256(
        "models/checkpoint/model.safetensors"
    )
