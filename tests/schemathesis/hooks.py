"""What schemathesis does around each of its requests: the state that the request meets, and the tally.

Each machine whose configuration is accepted is booted as well, as it is and with files that exist: it has to come up, or to
be refused as the document says.
"""

import atexit
import collections
import json
import os
import re

import schemathesis

from machine import CONFIG, Machine

machine = Machine(os.environ["VMM_SOCKET"], os.environ["VMM_STATE"])
requests = collections.defaultdict(collections.Counter)
machines = collections.Counter()

# Refusals of what JSON Schema cannot forbid: what depends on the numbers and names in other fields.
UNSAID = re.compile(
    r"cpus\.(max_vcpus|topology): "
    r"|\b(ip|mask): "
    r"|together with size"
    r"|for queue_affinity: "
    r"|rate_limit_group"
    r"|payload\.boot_disk"
    r"|for overlay: "
    r"|for (desired_)?balloon\b"
)


@schemathesis.hook
def before_call(context, case, kwargs):
    machine.prepare()


def has_whole_fraction(value):
    """Whether there is a number like 2.0, which JSON Schema takes for an integer, and parsers do not."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return any(map(has_whole_fraction, value))
    return isinstance(value, float) and value.is_integer()


@schemathesis.hook
def filter_failure(context, failure, case, response):
    """What no document can say is no failure. Descriptors, for one, cannot be sent by TCP."""
    if "Schema-valid" not in failure.title:
        return True
    descriptors = isinstance(case.body, dict) and case.body.get("fds")
    return not (descriptors or has_whole_fraction(case.body) or UNSAID.search(response.text))


@schemathesis.hook
def after_call(context, case, response):
    requests[f"{case.method.upper()} {case.path}"][response.status_code] += 1
    if case.method.upper() != "PUT" or response.status_code not in (200, 204):
        return
    machine.changed()
    if case.path == "/vm.create":
        boot("as it is")
        bootable = with_files(json.loads(case.body) if isinstance(case.body, str) else case.body)
        status, _ = machine.call("PUT", "vm.create", bootable)
        if status == 204:
            boot("with files that exist")


def boot(what):
    status, answer = machine.call("PUT", "vm.boot")
    # What is said of the files that do not exist would fill pages.
    machines[f"{what}: {status} {answer[1] if status == 500 else ''}".strip()] += 1
    if status not in (204, 400, 500):
        raise AssertionError(f"vm.boot answers {status} {answer}")
    machine.done("vm.delete")


def with_files(config):
    """The same machine of files that exist."""
    config = dict(config)
    config["payload"] = {"cmdline": config.get("payload", {}).get("cmdline"), **CONFIG["payload"]}
    path = CONFIG["disks"][0]["path"]
    # A disk cannot be written to by two.
    config["disks"] = [disk | {"path": path, "readonly": True} for disk in config.get("disks") or []]
    return config


@atexit.register
def tell():
    with open(os.environ["VMM_TALLY"], "w") as file:
        json.dump({"requests": requests, "machines": machines}, file)
