"""Serves one resource server of the real package nemo-gym, as the package itself does but without its cluster.

python nemo_gym_server.py MODULE:CLASS PORT
"""

import importlib
import sys

import uvicorn
from nemo_gym.config_types import BaseServerConfig
from nemo_gym.server_utils import ServerClient
from omegaconf import OmegaConf

HOST = "127.0.0.1"


def main() -> None:
    """Serve the class on a port of this machine."""
    module, name = sys.argv[1].split(":")
    port = int(sys.argv[2])
    server_class = getattr(importlib.import_module(module), name)
    config = server_class.model_fields["config"].annotation(name=name, host=HOST, port=port, entrypoint="app.py")
    head = BaseServerConfig(host=HOST, port=11000)
    client = ServerClient(head_server_config=head, global_config_dict=OmegaConf.create({}))
    server = server_class(config=config, server_client=client)
    uvicorn.run(server.setup_webserver(), host=HOST, port=port, log_level="warning")


if __name__ == "__main__":
    main()
