//! Networks while they are in use.

use api::request::{Answer, ApiError, Reply, SetLinkConfig};
use devices::rate_limit::RateLimits;
use devices::virtio::net::{NetHandle, PortState};

use super::change::unknown;
use super::{Control, Slot};
use crate::vm::attached::Kind;

impl Control {
    /// Sets the link of a network up or down, of the machine there is and of those that are built of its definition.
    pub(super) fn set_link(&mut self, config: &SetLinkConfig) -> Answer {
        const VERB: &str = "vm.set-link";
        let SetLinkConfig { id, up } = config;
        let definition = self.slot.definition_mut();
        let definition = definition.ok_or(ApiError::NotCreated { verb: VERB })?;
        let mut nets = definition.config.net.iter_mut();
        let net = nets.find(|net| net.id.as_ref() == Some(id));
        net.ok_or_else(|| unknown(id))?.link = *up;
        if let Slot::Live(live) = &mut self.slot {
            let (_, resources, _) = live.parts();
            for net in resources.nets.iter_mut().filter(|net| net.id() == id) {
                net.set_link(*up);
            }
        }
        if let Some(handle) = self.net(id) {
            handle.set_link(*up);
        }
        let link = if *up { "up" } else { "down" };
        self.events
            .publish("vm", "link-set", &[("id", id), ("link", link)]);
        Ok(Reply::Done)
    }

    /// Tells of networks whose interface on the host changed its state.
    pub(super) fn tell_of_links(&mut self) {
        let Slot::Live(live) = &mut self.slot else {
            return;
        };
        let (machine, resources, _) = live.parts();
        for (id, state) in machine.attached.ports() {
            let mut nets = resources.nets.iter_mut();
            let Some(net) = nets.find(|net| net.id() == id) else {
                continue;
            };
            if net.note_port(state) {
                let event = match state {
                    PortState::Up => "interface-up",
                    PortState::Down => "interface-down",
                    PortState::Gone => "interface-gone",
                };
                let interface = net.interface();
                self.events
                    .publish("net", event, &[("id", id), ("interface", interface)]);
            }
        }
    }

    /// Limits each direction of a network by `limits` from now on.
    pub(super) fn limit_net(&self, id: &str, limits: RateLimits) {
        if let Some(handle) = self.net(id) {
            handle.set_limits(limits);
        }
    }

    /// The device of a network, if there is a machine.
    fn net(&self, id: &str) -> Option<&NetHandle> {
        let Slot::Live(live) = &self.slot else {
            return None;
        };
        match &live.machine().attached.get(id)?.kind {
            Kind::Net { handle, .. } => Some(handle),
            _ => None,
        }
    }
}
