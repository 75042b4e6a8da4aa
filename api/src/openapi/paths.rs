//! The calls of the API.

use serde_json::{Map, Value, json};

use super::schemas::{ADD_DISK, ADD_NET, ERROR};
use super::{ADDITION, rules, schema_ref};

/// The bodies of a request and of the reply to one that was carried out.
#[derive(Clone, Copy)]
enum Body {
    /// There is none.
    None,
    /// JSON of this schema.
    Json(&'static str),
    /// JSON of this schema, or none at all where there is nothing to tell.
    Maybe(&'static str),
    /// JSON that this document does not describe.
    Any,
    /// Text of any of these media types.
    Text(&'static [&'static str]),
}

/// One call.
struct Call {
    /// Its path below `/api/v1`.
    path: &'static str,
    /// Whether it only tells, by GET, or does something, by PUT.
    reads: bool,
    /// The name that clients made from Cloud Hypervisor's document call it by, where that document gives one.
    id: Option<&'static str>,
    summary: &'static str,
    body: Body,
    reply: Body,
    /// Statuses of the errors that can happen, apart from those of the connection.
    errors: &'static [u16],
}

impl Call {
    const fn get(
        path: &'static str,
        summary: &'static str,
        reply: Body,
        errors: &'static [u16],
    ) -> Self {
        Self {
            path,
            reads: true,
            id: None,
            summary,
            body: Body::None,
            reply,
            errors,
        }
    }

    const fn put(path: &'static str, summary: &'static str, errors: &'static [u16]) -> Self {
        Self {
            path,
            reads: false,
            id: None,
            summary,
            body: Body::None,
            reply: Body::None,
            errors,
        }
    }

    /// A verb of Cloud Hypervisor's that is refused whatever its body says.
    const fn refused(path: &'static str, summary: &'static str, body: &'static str) -> Self {
        Self::put(path, summary, &[400, 413, 501]).takes(body)
    }

    const fn id(mut self, id: &'static str) -> Self {
        self.id = Some(id);
        self
    }

    const fn takes(mut self, schema: &'static str) -> Self {
        self.body = Body::Json(schema);
        self
    }

    const fn answers(mut self, reply: Body) -> Self {
        self.reply = reply;
        self
    }
}

/// What can go wrong with a call that has no body, and needs a VM: a body that it has all the same, too.
const PLAIN_ERRORS: &[u16] = &[400, 404, 405, 413, 500];
/// What can go wrong with a device that is added.
const ADD_ERRORS: &[u16] = &[400, 404, 405, 409, 413, 429, 500, 501];
/// Where the device is, once the machine runs.
const DEVICE: Body = Body::Maybe("PciDeviceInfo");

/// The calls that Cloud Hypervisor's document has, in its order.
const CALLS: &[Call] = &[
    Call::get(
        "vmm.ping",
        "Tell that the VMM is there, and what it is",
        Body::Json("VmmPingResponse"),
        &[400, 413, 500],
    ),
    Call::put(
        "vmm.shutdown",
        "End the VM, if there is one, and the VMM",
        &[400, 413, 500],
    )
    .id("shutdownVMM"),
    Call::get(
        "vm.info",
        "Tell what the VM is made of and what it does",
        Body::Json("VmInfo"),
        PLAIN_ERRORS,
    ),
    Call::get(
        "vm.counters",
        "Tell what the devices of the VM counted",
        Body::Json("VmCounters"),
        PLAIN_ERRORS,
    ),
    Call::put(
        "vm.create",
        "Take the configuration of a VM, without booting it",
        &[400, 409, 413, 500],
    )
    .id("createVM")
    .takes("VmConfig"),
    Call::put(
        "vm.delete",
        "Forget the VM, ending it if it runs",
        PLAIN_ERRORS,
    )
    .id("deleteVM"),
    Call::put(
        "vm.boot",
        "Build the VM and let it run",
        &[400, 404, 405, 409, 413, 500],
    )
    .id("bootVM"),
    Call::put(
        "vm.pause",
        "Let the vCPUs and devices of the VM stand still",
        PLAIN_ERRORS,
    )
    .id("pauseVM"),
    Call::put("vm.resume", "Let a paused VM run on", PLAIN_ERRORS).id("resumeVM"),
    Call::put(
        "vm.shutdown",
        "End the VM without asking the guest; its configuration stays",
        PLAIN_ERRORS,
    )
    .id("shutdownVM"),
    Call::put(
        "vm.reboot",
        "Start the VM anew without asking the guest",
        PLAIN_ERRORS,
    )
    .id("rebootVM"),
    Call::put(
        "vm.power-button",
        "Press the power button: ask the guest to shut down",
        PLAIN_ERRORS,
    )
    .id("power-buttonVM"),
    Call::put(
        "vm.resize",
        "Change the number of vCPUs, the size of memory or that of the balloon",
        &[400, 404, 405, 413, 429, 500, 501],
    )
    .takes("VmResize"),
    Call::put(
        "vm.resize-disk",
        "Change the size of a disk",
        &[400, 404, 405, 413, 500, 501],
    )
    .takes("VmResizeDisk"),
    Call::refused(
        "vm.resize-zone",
        "Change the size of a memory zone",
        "VmResizeZone",
    ),
    Call::refused("vm.add-device", "Add a device of the host", "DeviceConfig"),
    Call::put(
        "vm.remove-device",
        "Ask the guest to let go of a device, which goes when it has",
        &[400, 404, 405, 413, 429, 500],
    )
    .takes("VmRemoveDevice"),
    Call::put("vm.add-disk", "Add a disk", ADD_ERRORS)
        .takes(ADD_DISK)
        .answers(DEVICE),
    Call::put(
        "vm.add-fs",
        "Add a directory that another process serves",
        &[400, 404, 405, 409, 413, 429, 500],
    )
    .takes("FsConfig")
    .answers(DEVICE),
    Call::refused(
        "vm.add-generic-vhost-user",
        "Add a device that another process serves",
        "GenericVhostUserConfig",
    ),
    Call::refused("vm.add-pmem", "Add persistent memory", "PmemConfig"),
    Call::put("vm.add-net", "Add a network", ADD_ERRORS)
        .takes(ADD_NET)
        .answers(DEVICE),
    Call::put(
        "vm.add-vsock",
        "Add sockets between host and guest",
        &[400, 404, 405, 409, 413, 429, 500],
    )
    .takes("VsockConfig")
    .answers(DEVICE),
    Call::refused("vm.add-vdpa", "Add a device by vDPA", "VdpaConfig"),
    Call::refused(
        "vm.add-user-device",
        "Add a device by vfio-user",
        "VmAddUserDevice",
    ),
    Call::refused("vm.snapshot", "Save the VM", "VmSnapshotConfig"),
    Call::put(
        "vm.coredump",
        "Write an ELF core of guest memory and registers",
        &[400, 404, 405, 409, 413, 500],
    )
    .takes("VmCoredumpData"),
    Call::put(
        "vm.nmi",
        "Raise a non-maskable interrupt on every vCPU",
        PLAIN_ERRORS,
    ),
    Call::refused("vm.restore", "Restore a VM that was saved", "RestoreConfig"),
    Call::refused(
        "vm.receive-migration",
        "Take over a VM from another VMM",
        "ReceiveMigrationData",
    ),
    Call::refused(
        "vm.send-migration",
        "Hand the VM over to another VMM",
        "SendMigrationData",
    ),
];

/// The calls that Podvisor has besides.
const ADDITIONS: &[Call] = &[
    Call::put(
        "vm.set-link",
        "Set the link of a network up or down",
        &[400, 404, 413, 500],
    )
    .takes("VmSetLink"),
    Call::put(
        "vm.set-rate-limiter",
        "Change the limits of a disk, a network, or a group of disks",
        PLAIN_ERRORS,
    )
    .takes("VmSetRateLimiter"),
    Call::get(
        "vm.events",
        "Tell what happens to the VM, as server-sent events, until the client or the VMM goes",
        Body::Text(&["text/event-stream"]),
        &[429, 500],
    ),
    Call::get(
        "openapi.json",
        "Tell what the API is: this document",
        Body::Any,
        &[500],
    ),
];

/// What is measured. Its path is not below `/api/v1`.
const METRICS: Call = Call::get(
    "metrics",
    "Tell what is measured of the VMM and the VM, in OpenMetrics",
    Body::Text(&["application/openmetrics-text", "text/plain"]),
    &[500],
);

/// The path items by their paths.
pub(super) fn paths() -> Map<String, Value> {
    let mut paths = Map::new();
    for call in CALLS {
        paths.insert(format!("/{}", call.path), item(call));
    }
    for call in ADDITIONS {
        let mut item = item(call);
        item[ADDITION] = json!(true);
        paths.insert(format!("/{}", call.path), item);
    }
    let mut metrics = item(&METRICS);
    metrics[ADDITION] = json!(true);
    metrics["servers"] = json!([{"url": "http://localhost"}]);
    paths.insert(format!("/{}", METRICS.path), metrics);
    paths
}

fn item(call: &Call) -> Value {
    let method = if call.reads { "get" } else { "put" };
    json!({ method: operation(call) })
}

fn operation(call: &Call) -> Value {
    let mut operation = json!({"summary": call.summary, "responses": responses(call)});
    if let Some(id) = call.id {
        operation["operationId"] = json!(id);
    }
    if let Body::Json(schema) = call.body {
        let mut media = json!({"schema": schema_ref(schema)});
        if schema == "VmConfig"
            && let Value::Object(condition) = rules::create()
        {
            for (keyword, value) in condition {
                media["schema"][keyword] = value;
            }
        }
        if let Some(example) = example(schema) {
            media["example"] = example;
        }
        operation["requestBody"] = json!({
            "required": true,
            "content": {"application/json": media},
        });
    }
    operation
}

fn responses(call: &Call) -> Value {
    let mut responses = json!({});
    let json = |schema: Value| json!({"application/json": {"schema": schema}});
    let content = match call.reply {
        Body::None => None,
        Body::Json(schema) | Body::Maybe(schema) => Some(json(schema_ref(schema))),
        Body::Any => Some(json(json!({"type": "object"}))),
        Body::Text(types) => {
            let text = |&media: &&str| (media.to_owned(), json!({"schema": {"type": "string"}}));
            Some(types.iter().map(text).collect())
        }
    };
    let refused = call.errors.contains(&501) && call.errors.len() == 3;
    if let Some(content) = content {
        responses["200"] = json!({"description": "What was asked for.", "content": content});
    }
    if matches!(call.reply, Body::None | Body::Maybe(_)) && !refused {
        responses["204"] = json!({"description": "It is done; there is nothing to tell."});
    }
    let slow: &[u16] = match call.body {
        Body::None => &[],
        _ => &[408],
    };
    // There may be more clients than the server takes, whatever they ask for.
    for &status in call.errors.iter().chain(slow).chain(&[503]) {
        responses[status.to_string()] =
            json!({"$ref": format!("#/components/responses/{}", error(status).0)});
    }
    responses
}

/// The name of an error's response, and what it means.
fn error(status: u16) -> (&'static str, &'static str) {
    match status {
        400 => (
            "Invalid",
            "The body cannot be used: the field, its value and what was expected. Nothing was changed.",
        ),
        404 => (
            "NotFound",
            "There is no VM, or it has no device of that name.",
        ),
        405 => ("WrongState", "The VM is not in a state that allows it."),
        408 => ("TooSlow", "The body did not come in time."),
        409 => (
            "Taken",
            "There is a VM already, or another device of it has that name.",
        ),
        413 => (
            "TooLarge",
            "The body is larger than any that could be used.",
        ),
        429 => (
            "Pending",
            "What was asked for before has to end first. Try again later.",
        ),
        501 => ("NotSupported", "Part of the API, and not part of this VMM."),
        503 => ("Busy", "All connections are in use."),
        _ => ("Failed", "It was tried and failed. Nothing was changed."),
    }
}

/// The responses of errors by their names.
pub(super) fn error_responses() -> Map<String, Value> {
    let statuses = [400, 404, 405, 408, 409, 413, 429, 500, 501, 503];
    statuses
        .into_iter()
        .map(|status| {
            let (name, description) = error(status);
            let content = json!({"application/json": {"schema": schema_ref(ERROR)}});
            (
                name.to_owned(),
                json!({"description": description, "content": content}),
            )
        })
        .collect()
}

/// A body that is accepted.
fn example(schema: &str) -> Option<Value> {
    Some(match schema {
        "VmConfig" => json!({
            "payload": {"kernel": "/boot/vmlinuz", "initramfs": "/boot/initrd.img", "cmdline": "console=ttyS0 quiet"},
            "cpus": {"boot_vcpus": 2, "max_vcpus": 4},
            "memory": {"size": 1_u64 << 30},
            "disks": [{"id": "root", "path": "/var/lib/podvisor/root.img"}],
            "net": [{"id": "lan", "tap": "tap0", "mac": "52:54:00:12:34:56"}],
            "serial": {"mode": "File", "file": "/var/log/podvisor/serial.log"},
        }),
        ADD_DISK => json!({"id": "data", "path": "/var/lib/podvisor/data.img", "readonly": true}),
        ADD_NET => json!({"id": "wan", "tap": "tap1"}),
        "FsConfig" => json!({"tag": "home", "socket": "/run/podvisor/fs.sock"}),
        "VsockConfig" => json!({"cid": 3, "socket": "/run/podvisor/vsock.sock"}),
        "VmResize" => json!({"desired_vcpus": 3}),
        "VmResizeDisk" => json!({"id": "data", "desired_size": 2_u64 << 30}),
        "VmSetLink" => json!({"id": "lan", "up": false}),
        "VmSetRateLimiter" => json!({
            "id": "data",
            "rate_limiter_config": {"ops": {"size": 500, "refill_time": 1000}},
        }),
        "VmRemoveDevice" => json!({"id": "data"}),
        "VmCoredumpData" => json!({"destination_url": "file:///var/tmp/vm.core"}),
        _ => return None,
    })
}
