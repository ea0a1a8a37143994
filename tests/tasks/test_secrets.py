import os
import subprocess
import sys

SHOW = """
from tasks.annotate import annotate
for s in annotate.security_context.secrets if annotate.security_context else ():
    print(s.group, s.key, s.env_var, s.mount_requirement.name)
"""


def secrets(variable):
    env = {**os.environ, "STEPTOOL_SECRETS": variable}
    done = subprocess.run([sys.executable, "-c", SHOW], env=env, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_a_task_asks_for_the_secrets_that_are_named_at_registration():
    assert secrets("OPENAI_API_KEY=openai/api-key, OTHER_KEY=lone") == [
        "openai api-key OPENAI_API_KEY ENV_VAR",
        "lone None OTHER_KEY ENV_VAR",
    ]
    assert secrets("") == []
