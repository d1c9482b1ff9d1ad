"""`image-classifier promote`: make the current model the champion."""

from image_classifier.commands.sync import current_model
from image_classifier.core import config
from image_classifier.core.config import Mlflow
from image_classifier.core.errors import UserError
from image_classifier.export import register
from image_classifier.export.register import ALIAS
from image_classifier.tracking.server import connection
from image_classifier.tracking.server.connection import MODEL_TAG


def main() -> int:
    """Promote the current model."""
    name, number = promote(config.load().mlflow, current_model())
    print(f"version {number} of {name} is the {ALIAS}: models:/{name}@{ALIAS}")
    return 0


def promote(settings: Mlflow, sha256: str) -> tuple[str, str]:
    """Make the model with these weights the champion; return the registered model's name and the version.

    Raises UserError: it is not registered, or the server fails.
    """
    name = register.model_name(settings)
    try:
        client, experiment = connection.connect(settings)
        run = connection.newest(client, experiment, MODEL_TAG, sha256)
        versions = register.versions(client, settings, run.info.run_id) if run else []
        if not versions:
            raise UserError(f"no version of {name} has the weights of models/export: run sync first")
        client.set_registered_model_alias(name, ALIAS, versions[0])
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"MLflow: {connection.reason(error)}") from None
    return name, versions[0]
