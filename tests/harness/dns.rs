//! A name server on loopback: real packets over UDP, with the records that a test gives it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

const TXT: u16 = 16;
const CNAME: u16 = 5;

/// What the server says of a name.
#[derive(Debug, Clone)]
pub enum Record {
    /// A TXT record of these strings, at most 255 bytes each.
    Txt(Vec<String>),
    /// The name is another's.
    Cname(String),
    /// The server fails (SERVFAIL).
    Fails,
    /// The server says nothing.
    Silent,
}

/// The records, by lower-case name.
type Zone = Arc<Mutex<BTreeMap<String, Vec<Record>>>>;

/// A name server; it stops when it is dropped. A name without records does not exist (NXDOMAIN).
#[derive(Debug)]
pub struct DnsServer {
    /// Where it listens.
    pub address: SocketAddr,
    zone: Zone,
    asked: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl DnsServer {
    /// A server without records.
    pub async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let address = socket.local_addr().expect("an address");
        let (zone, asked) = (Zone::default(), Arc::<Mutex<Vec<String>>>::default());
        let (records, names) = (Arc::clone(&zone), Arc::clone(&asked));
        let task = tokio::spawn(async move {
            let mut packet = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut packet).await {
                let Some((name, answer)) = answer(&packet[..length], &records) else { continue };
                names.lock().unwrap_or_else(PoisonError::into_inner).push(name);
                if let Some(answer) = answer {
                    socket.send_to(&answer, from).await.expect("sent");
                }
            }
        });
        Self { address, zone, asked, task }
    }

    /// Replaces the records of a name.
    pub fn set(&self, name: &str, records: &[Record]) {
        self.zone.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_ascii_lowercase(), records.to_vec());
    }

    /// Replaces the records of a name by one TXT record of one string.
    pub fn txt(&self, name: &str, text: &str) {
        self.set(name, &[Record::Txt(vec![text.to_owned()])]);
    }

    /// Which names were asked for, in their order.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The name that is asked for, and the answer if there is to be one.
fn answer(question: &[u8], zone: &Zone) -> Option<(String, Option<Vec<u8>>)> {
    let (name, end) = read_name(question, 12)?;
    let kind = u16::from_be_bytes(question.get(end..end + 2)?.try_into().ok()?);
    let zone = zone.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut answers, mut count, mut code) = (Vec::new(), 0_u16, 3_u8); // NXDOMAIN, unless there is something
    let (mut at, mut owner) = (zone.get(&name.to_ascii_lowercase()), name.clone());
    while let Some(records) = at {
        code = 0;
        at = None;
        for record in records {
            match record {
                Record::Silent => return Some((name, None)),
                Record::Fails => code = 2,
                Record::Txt(texts) if kind == TXT => {
                    let data: Vec<u8> =
                        texts.iter().flat_map(|text| [&[u8::try_from(text.len()).expect("255 bytes")], text.as_bytes()].concat()).collect();
                    push(&mut answers, &owner, TXT, &data);
                    count += 1;
                }
                Record::Txt(_) => {}
                Record::Cname(target) => {
                    push(&mut answers, &owner, CNAME, &write_name(target));
                    count += 1;
                    (at, owner) = (zone.get(target), target.clone());
                }
            }
        }
    }
    let mut answer = question[..2].to_vec();
    answer.extend([0x81, 0x80 | code, 0, 1]); // an answer, recursion desired and available; one question
    answer.extend(count.to_be_bytes());
    answer.extend([0; 4]);
    answer.extend(&question[12..end + 4]);
    answer.extend(answers);
    Some((name, Some(answer)))
}

fn push(answers: &mut Vec<u8>, owner: &str, kind: u16, data: &[u8]) {
    answers.extend(write_name(owner));
    answers.extend(kind.to_be_bytes());
    answers.extend([0, 1, 0, 0, 0, 1]); // IN, for a second
    answers.extend(u16::try_from(data.len()).expect("short").to_be_bytes());
    answers.extend(data);
}

fn write_name(name: &str) -> Vec<u8> {
    let labels = name.trim_end_matches('.').split('.');
    labels.flat_map(|label| [&[u8::try_from(label.len()).expect("a label")], label.as_bytes()].concat()).chain([0]).collect()
}

/// A name without pointers, and where it ends.
fn read_name(packet: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    loop {
        let length = usize::from(*packet.get(at)?);
        if length == 0 {
            return Some((labels.join("."), at + 1));
        }
        labels.push(String::from_utf8_lossy(packet.get(at + 1..at + 1 + length)?).into_owned());
        at += 1 + length;
    }
}
