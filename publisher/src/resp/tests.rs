use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    net::{TcpListener, TcpStream},
    time::Instant,
};

use super::*;
use crate::topology::RedisUrl;

/// No shorter: the kernel counts keep-alive in seconds, and it is half of one.
const LIMIT: Duration = Duration::from_millis(500);

fn over(stream: impl Stream + 'static) -> Connection {
    Connection { stream: Box::new(stream), received: BytesMut::new(), unsent: BytesMut::new(), flush: Flush::Done }
}

fn text(data: &'static str) -> Frame {
    Frame::BlobString { data: data.into(), attributes: None }
}

/// What opening a connection to a server ends with, which reads the greeting and does this.
async fn opened(url: &str, serve: impl AsyncFnOnce(TcpStream, String)) -> Result<Connection, ConnectionError> {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let url = RedisUrl::parse(&url.replace("server", &address)).expect("a URL");
    let target = url.target(&url.seeds()[0]);
    let serving = async {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut greeting = vec![0; 1024];
        let read = stream.read(&mut greeting).await.expect("a greeting");
        greeting.truncate(read);
        serve(stream, String::from_utf8(greeting).expect("a text")).await;
    };
    tokio::join!(Connection::open(&target, "name", LIMIT), serving).0
}

#[tokio::test]
async fn frames_that_come_byte_by_byte_are_whole() {
    const BYTES: &[u8] = b"+OK\r\n>3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$5\r\n1\r\n23\r\n:7\r\n";
    let (client, mut server) = duplex(1);
    let mut connection = over(client);
    let sending = async {
        server.write_all(BYTES).await.expect("sent");
    };
    let reading = async {
        let ok = connection.frame().await.expect("a frame");
        assert_eq!(ok, Frame::SimpleString { data: "OK".into(), attributes: None });
        let push = connection.frame().await.expect("a frame");
        assert_eq!(push, Frame::Push { data: vec![text("message"), text("c"), text("1\r\n23")], attributes: None });
        assert_eq!(connection.frame().await.expect("a frame"), Frame::Number { data: 7, attributes: None });
    };
    tokio::join!(sending, reading);
}

#[tokio::test]
async fn a_long_command_is_sent_while_pushes_come() {
    let (client, mut server) = duplex(16);
    let mut connection = over(client);
    let word = "w".repeat(10_000);
    connection.send(&["PUBLISH", &word]);
    let serving = async {
        // Both directions are full at once: neither side may wait for the other.
        let mut seen = Vec::new();
        while !seen.ends_with(format!("{word}\r\n").as_bytes()) {
            server.write_all(b">1\r\n+p\r\n").await.expect("sent");
            server.read_buf(&mut seen).await.expect("received");
        }
        server.write_all(b":1\r\n").await.expect("sent");
        assert_eq!(seen, format!("*2\r\n$7\r\nPUBLISH\r\n$10000\r\n{word}\r\n").into_bytes());
    };
    let reading = async { while !matches!(connection.frame().await.expect("a frame"), Frame::Number { .. }) {} };
    tokio::join!(serving, reading);
}

#[tokio::test]
async fn attributes_and_verbatim_texts_are_read() {
    let (client, mut server) = duplex(1024);
    let mut connection = over(client);
    let bytes = b"|1\r\n+ttl\r\n:3600\r\n>2\r\n+a\r\n+b\r\n=8\r\ntxt:info\r\n";
    server.write_all(bytes).await.expect("sent");
    assert!(matches!(connection.frame().await.expect("a frame"), Frame::Push { data, .. } if data.len() == 2));
    let info = connection.frame().await.expect("a frame");
    assert!(matches!(&info, Frame::VerbatimString { data, .. } if *data == "info"), "{info:?}");
    drop(server);
    assert!(matches!(connection.frame().await, Err(ConnectionError::Closed)));
}

#[tokio::test]
async fn the_greeting_says_who_connects() {
    let opened = opened("redis://user:p%40ss@server", async |mut stream, greeting| {
        let words = ["HELLO", "3", "AUTH", "user", "p@ss", "SETNAME", "name"];
        let words = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len()));
        assert_eq!(greeting, format!("*7\r\n{}", words.collect::<String>()));
        stream.write_all(b"%1\r\n+proto\r\n:3\r\n").await.expect("sent");
    });
    assert!(opened.await.is_ok());
}

#[tokio::test]
async fn a_refused_greeting_is_told_in_the_words_of_redis() {
    for said in ["WRONGPASS invalid username-password pair or user is disabled.", "NOAUTH HELLO must be called"] {
        let refused = opened("redis://:hunter2@server", async |mut stream, _| {
            stream.write_all(format!("-{said}\r\n").as_bytes()).await.expect("sent");
        });
        assert_eq!(refused.await.err().map(|error| error.to_string()).as_deref(), Some(said));
    }
}

#[tokio::test]
async fn a_server_that_hangs_is_given_up() {
    let begun = Instant::now();
    let silent = opened("redis://server", async |stream, _| {
        tokio::time::sleep(2 * LIMIT).await;
        drop(stream);
    });
    assert!(matches!(silent.await, Err(ConnectionError::Silent(LIMIT))));
    assert!(begun.elapsed() >= LIMIT);
}

#[tokio::test]
async fn an_address_without_a_server_is_vacant() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("redis://{}", listener.local_addr().expect("an address"));
    drop(listener);
    let url = RedisUrl::parse(&url).expect("a URL");
    let error = Connection::open(&url.target(&url.seeds()[0]), "name", LIMIT).await.err().expect("no server");
    assert!(error.is_vacant() && error.to_string().contains("refused"), "{error}");
}

proptest! {
    #[test]
    fn no_bytes_make_the_decoder_panic(bytes: Vec<u8>) {
        let (client, _server) = duplex(1);
        let mut connection = over(client);
        connection.received.extend_from_slice(&bytes);
        while let Ok(Some(_)) = connection.decode() {}
    }
}
