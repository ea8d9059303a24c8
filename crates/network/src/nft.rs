//! The router namespace's only packet rules, as one nf_tables transaction: TCP that leaves for the world goes to
//! the proxy's egress listener. Everything else stays out of connection tracking.

use std::io;
use std::net::Ipv4Addr;

use crate::cidr::Cidr;
use crate::netlink::{Family, Message, Socket, flag};

const TABLE: &str = "gantry";
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const IPV4: u8 = 2;
const TCP: u8 = 6;

/// `NF_INET_*`
#[derive(Clone, Copy)]
enum Hook {
    Prerouting = 0,
    Output = 3,
}

const PRIORITY_RAW: i32 = -300;
const PRIORITY_DNAT: i32 = -100;

/// Puts the rules in place, in the calling thread's namespace, in place of what was there, with no moment between.
/// `to` is the egress listener; `inside` are the ranges that are no egress. Where the kernel cannot leave packets
/// untracked, all are tracked.
pub(crate) fn redirect_egress(services: Cidr, pods: Cidr, to: (Ipv4Addr, u16)) -> io::Result<()> {
    match install(services, pods, to, true) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => install(services, pods, to, false),
        other => other,
    }
}

fn install(services: Cidr, pods: Cidr, to: (Ipv4Addr, u16), untracked: bool) -> io::Result<()> {
    let mut messages = vec![table(NEW_TABLE), table(DELETE_TABLE), table(NEW_TABLE)];
    messages.push(chain("egress", "nat", Hook::Prerouting, PRIORITY_DNAT));
    for inside in [services, pods] {
        messages.push(rule("egress", |rule| {
            rule.destination_in(inside);
            rule.accept();
        }));
    }
    messages.push(rule("egress", |rule| {
        rule.protocol(TCP);
        rule.redirect(to);
    }));
    if untracked {
        messages.push(chain("arriving", "filter", Hook::Prerouting, PRIORITY_RAW));
        for inside in [services, pods] {
            messages.push(rule("arriving", |rule| {
                rule.destination_in(inside);
                rule.untracked();
            }));
        }
        messages.push(chain("leaving", "filter", Hook::Output, PRIORITY_RAW));
        // The egress listener's answers must find their connection, to leave under the address that was dialled.
        messages.push(rule("leaving", |rule| {
            rule.protocol(TCP);
            rule.source_port(to.1);
            rule.accept();
        }));
        messages.push(rule("leaving", |rule| rule.untracked()));
    }
    let mut socket = Socket::open(Family::Netfilter)?;
    socket.transaction(edge(BATCH_BEGIN), messages, edge(BATCH_END))
}

/// `struct nfgenmsg`
fn edge(kind: u16) -> Message {
    let mut header = [0; 4];
    header[2..].copy_from_slice(&SUBSYSTEM.to_be_bytes());
    Message::new(kind, 0, &header)
}

fn message(kind: u16, flags: u16) -> Message {
    Message::new(SUBSYSTEM << 8 | kind, flags, &[IPV4, 0, 0, 0])
}

fn table(kind: u16) -> Message {
    let flags = if kind == NEW_TABLE { flag::CREATE } else { 0 };
    let mut table = message(kind, flags);
    table.string(1, TABLE);
    table
}

fn chain(name: &str, kind: &str, hook: Hook, priority: i32) -> Message {
    let mut chain = message(NEW_CHAIN, flag::CREATE);
    chain.string(1, TABLE);
    chain.string(3, name);
    chain.nest(4, |nest| {
        nest.number_be(1, hook as u32);
        nest.number_be(2, priority as u32);
    });
    chain.string(7, kind);
    chain
}

fn rule(chain: &str, fill: impl FnOnce(&mut Rule<'_>)) -> Message {
    let mut rule = message(NEW_RULE, flag::CREATE | flag::APPEND);
    rule.string(1, TABLE);
    rule.string(2, chain);
    rule.nest(4, |expressions| fill(&mut Rule(expressions)));
    rule
}

/// The expressions of a rule; register 1 carries what is compared.
struct Rule<'m>(&'m mut Message);

impl Rule<'_> {
    fn expression(&mut self, name: &str, data: impl FnOnce(&mut Message)) {
        self.0.nest(1, |element| {
            element.string(1, name);
            element.nest(2, data);
        });
    }

    fn compare(&mut self, value: &[u8]) {
        self.expression("cmp", |data| {
            data.number_be(1, 1);
            data.number_be(2, 0);
            data.nest(3, |nest| nest.attribute(1, value));
        });
    }

    fn payload(&mut self, base: u32, offset: u32, len: u32) {
        self.expression("payload", |data| {
            data.number_be(1, 1);
            data.number_be(2, base);
            data.number_be(3, offset);
            data.number_be(4, len);
        });
    }

    fn destination_in(&mut self, range: Cidr) {
        const NETWORK_HEADER: u32 = 1;
        const DESTINATION_OFFSET: u32 = 16;
        self.payload(NETWORK_HEADER, DESTINATION_OFFSET, 4);
        self.expression("bitwise", |data| {
            data.number_be(1, 1);
            data.number_be(2, 1);
            data.number_be(3, 4);
            data.nest(4, |mask| mask.attribute(1, &range.netmask().octets()));
            data.nest(5, |xor| xor.attribute(1, &[0; 4]));
        });
        self.compare(&range.address().octets());
    }

    fn protocol(&mut self, protocol: u8) {
        const L4_PROTOCOL: u32 = 16;
        self.expression("meta", |data| {
            data.number_be(1, 1);
            data.number_be(2, L4_PROTOCOL);
        });
        self.compare(&[protocol]);
    }

    fn source_port(&mut self, port: u16) {
        const TRANSPORT_HEADER: u32 = 2;
        self.payload(TRANSPORT_HEADER, 0, 2);
        self.compare(&port.to_be_bytes());
    }

    fn accept(&mut self) {
        self.expression("immediate", |data| {
            data.number_be(1, 0);
            data.nest(2, |value| value.nest(2, |verdict| verdict.number_be(1, 1)));
        });
    }

    fn untracked(&mut self) {
        // This expression takes no data at all, not even an empty nest.
        self.0.nest(1, |element| element.string(1, "notrack"));
    }

    fn redirect(&mut self, to: (Ipv4Addr, u16)) {
        const DESTINATION_NAT: u32 = 1;
        for (register, value) in [(1, to.0.octets().to_vec()), (2, to.1.to_be_bytes().to_vec())] {
            self.expression("immediate", |data| {
                data.number_be(1, register);
                data.nest(2, |nest| nest.attribute(1, &value));
            });
        }
        self.expression("nat", |data| {
            data.number_be(1, DESTINATION_NAT);
            data.number_be(2, u32::from(IPV4));
            data.number_be(3, 1);
            data.number_be(5, 2);
        });
    }
}
