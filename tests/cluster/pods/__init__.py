"""A Flyte cluster small enough for a test: it runs serialised workflows node by node, each task as its pod would run.

What it does as Flyte does (flytepropeller and flyteadmin 1.16):
- packages the project with pyflyte; the code arrives in a pod as the fast-registration tarball, nothing else of it does
- runs a task as the serialised container's own arguments, in an empty folder, with the environment of a pod, and passes
  inputs, outputs, errors and checkpoints through a bucket (moto serves S3 on loopback)
- tasks, map tasks, sub-workflows, launch plans, branches, gates, dynamic tasks (nested too), failure nodes
- retries what a task calls recoverable as often as the task says, and lost pods (kill -9, a crash without an error
  document) three times, with the checkpoints of the attempt before; a pod can be killed in mid-work
- caches outputs by task, interface, cache version and inputs (DataCatalog)
- refuses what the compiler and Admin refuse, at registration and when a dynamic task hands over its nodes
- answers pyflyte over gRPC (register, run --remote, launchplan --activate)

What it leaves out:
- containers: a pod is a process of this machine, in a virtual environment instead of an image; requests, limits, GPUs
  and node selection stand in the protobufs but do nothing
- operators and agents: tasks of several nodes (PyTorchJob, Spark) are refused
- aborting the nodes that run when another one fails (they end by themselves), reservations of a cache key, literals
  that are too large to be passed by value, artifacts, secrets, the platform's own limits on resources
- clocks: a schedule is checked, but nothing starts by itself

    store    the bucket                              package   from the project to a registry of its entities
    image    the interpreter of a pod                pod       one attempt of a task, as a process
    literals bindings, conditions, values            types     which type may be bound to which
    compiler what the compiler refuses               admission what Admin refuses
    catalog  the cache                               arrays    map tasks
    engine   the walk over the nodes                 admin     the gRPC services
"""
