"""The machine under test: brought into the state that a request is to meet, over the VMM's Unix socket."""

import http.client
import json
import socket

# Paths are those that the VMM sees. The sections that requests change are there with all that they can change.
CONFIG = {
    "payload": {"kernel": "/shared/guest.elf"},
    "cpus": {"boot_vcpus": 1, "max_vcpus": 2},
    "memory": {"size": 16 << 20, "hotplug_size": 128 << 20},
    "disks": [{"id": "root", "path": "/shared/disk.img"}],
    "net": [{"id": "lan"}],
    "balloon": {"size": 0},
    "watchdog": True,
}

# The state that vm.info tells, and the verbs that lead from no machine to it.
STATES = {
    "absent": (None, []),
    "created": ("Created", ["vm.create"]),
    "running": ("Running", ["vm.create", "vm.boot"]),
    "paused": ("Paused", ["vm.create", "vm.boot", "vm.pause"]),
}

# So many changes are left to pile up, before the machine is made anew.
KEPT_CHANGES = 8


class Unix(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=60)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Machine:
    def __init__(self, path, state):
        self.connection = Unix(path)
        self.wanted, self.verbs = STATES[state]
        self.changes = 0

    def call(self, method, verb, body=None):
        text = None if body is None else json.dumps(body)
        self.connection.request(method, f"/api/v1/{verb}", text)
        response = self.connection.getresponse()
        text = response.read()
        return response.status, json.loads(text) if text else None

    def done(self, verb, body=None):
        status, answer = self.call("PUT", verb, body)
        if status not in (200, 204):
            raise RuntimeError(f"{verb} answers {status} {answer}")

    def state(self):
        status, answer = self.call("GET", "vm.info")
        return answer["state"] if status == 200 else None

    def changed(self):
        self.changes += 1

    def prepare(self):
        """Brings the machine into the wanted state, if it is not in it or has changed too much."""
        found = self.state()
        if found == self.wanted and self.changes < KEPT_CHANGES:
            return
        self.changes = 0
        if found is not None:
            self.done("vm.delete")
        for verb in self.verbs:
            self.done(verb, CONFIG if verb == "vm.create" else None)
