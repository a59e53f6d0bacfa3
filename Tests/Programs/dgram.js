// What Node's documentation says of dgram, one line per step, the same on the kernel and on Machnet.
const dgram = require("node:dgram");
const events = require("node:events");

const say = (...words) => console.log(...words);
const HOST = "127.0.0.1";
const open = (options = { type: "udp4" }) => dgram.createSocket(options);
async function bound(options, where = { address: HOST, port: 0 }) {
  const socket = open(options);
  await new Promise((done, fail) => socket.once("error", fail).bind(where, done));
  socket.removeAllListeners("error");
  return socket;
}
const next = async (socket) => {
  const [data, from] = await events.once(socket, "message");
  return { text: data.toString(), from };
};
const send = (socket, ...what) =>
  new Promise((done) => socket.send(...what, (error, bytes) => done(error ? error.code ?? error.name : bytes)));
const attempt = (what) => {
  try {
    return what();
  } catch (error) {
    return error.code;
  }
};

async function binding() {
  const a = open();
  say("address before bind:", attempt(() => a.address()));
  const listening = events.once(a, "listening");
  a.bind(0, HOST, () => say("bind's callback:", a.address().address, a.address().family, a.address().port > 0));
  await listening;
  say("bind again:", attempt(() => a.bind(0)));
  const b = open();
  b.bind(a.address().port, HOST);
  const [error] = await events.once(b, "error");
  say("a port in use:", error.code, error.syscall, error.address, error.port === a.address().port);
  const shared = { type: "udp4", reuseAddr: true }, first = await bound(shared), second = await bound(shared, first.address());
  say("reuseAddr:", second.address().port === first.address().port);
  first.close(), second.close();
  const exclusive = await bound(undefined, { address: HOST, port: 0, exclusive: true });
  say("exclusive:", exclusive.address().port > 0);
  const nobody = open();
  nobody.bind(0, "192.0.2.1");
  say("an address of nobody:", (await events.once(nobody, "error"))[0].code);
  // A send binds; what it binds to is told.
  const late = open();
  say("send binds:", await send(late, "late", a.address().port, HOST), late.address().port > 0);
  say("and arrives:", (await next(a)).text);
  for (const socket of [a, exclusive, late]) socket.close();
}

async function sending() {
  const a = await bound(), b = await bound();
  const port = b.address().port;
  const texts = [];
  b.on("message", (data, from) => texts.push(`${data.length}:${data.subarray(0, 8)}:${from.size}:${from.port === a.address().port}`));
  const arrived = async (count) => {
    while (texts.length < count) await events.once(b, "message");
    return texts.splice(0).join(" ");
  };
  say("a string:", await send(a, "string", port, HOST), await arrived(1));
  say("a buffer's part:", await send(a, Buffer.from("0123456789"), 2, 5, port, HOST), await arrived(1));
  say("an array:", await send(a, [Buffer.from("one"), "two", new Uint8Array([51])], port, HOST), await arrived(1));
  say("nothing:", await send(a, "", port, HOST), await arrived(1));
  say("an empty array:", await send(a, [], port, HOST), await arrived(1));
  for (const size of [1472, 1473, 65507]) say("bytes:", await send(a, Buffer.alloc(size, 97), port, HOST), await arrived(1));
  say("one too many:", await send(a, Buffer.alloc(65508), port, HOST));
  say("no port:", attempt(() => a.send("x", 0, HOST)));
  say("no message:", attempt(() => a.send(undefined, port, HOST)));
  const all = Array.from({ length: 50 }, (_, i) => send(a, `number ${i}`, port, HOST));
  say("fifty at once:", (await Promise.all(all)).reduce((sum, one) => sum + one, 0), (await arrived(50)).length);
  say("queue:", a.getSendQueueSize(), a.getSendQueueCount());
  const queued = send(a, "queued", port, HOST);
  say("queued:", a.getSendQueueSize() >= 0, a.getSendQueueCount() >= 0, await queued, a.getSendQueueSize(), await arrived(1));
  a.close(), b.close();
}

async function connecting() {
  const a = await bound(), b = await bound(), stranger = await bound();
  say("disconnect first:", attempt(() => a.disconnect()), attempt(() => a.remoteAddress()));
  await new Promise((done) => a.connect(b.address().port, HOST, done));
  say("connected:", a.remoteAddress().address, a.remoteAddress().port === b.address().port);
  say("again:", attempt(() => a.connect(b.address().port, HOST)));
  say("with an address:", attempt(() => a.send(Buffer.from("x"), 0, 1, b.address().port, HOST)));
  const asked = next(b);
  say("send:", await send(a, "to the peer"), (await asked).text);
  const answer = next(a);
  await send(stranger, "not for a", a.address().port, HOST);
  await send(b, "an answer", a.address().port, HOST);
  say("from the peer alone:", (await answer).text);
  a.disconnect();
  // A port that the kernel has chosen goes with the peer; the next send binds anew.
  say("disconnected:", attempt(() => a.remoteAddress()), a.address().port);
  const asked2 = next(stranger);
  say("goes on:", await send(a, "to a stranger", stranger.address().port, HOST), (await asked2).from.port === a.address().port);
  const heard = next(a);
  await send(stranger, "for a again", a.address().port, HOST);
  say("from anybody:", (await heard).text);
  const gone = b.address().port;
  b.close();
  await events.once(b, "close");
  const c = open();
  await new Promise((done) => c.connect(gone, HOST, done));
  const refused = events.once(c, "error");
  // (Until the close is known everywhere, some 100 us, a datagram is only lost.)
  const again = setInterval(() => c.send("anybody?", () => {}), 20);
  say("nobody listens:", (await refused)[0].code);
  clearInterval(again);
  c.removeAllListeners("error").on("error", () => {});
  for (const socket of [a, stranger, c]) socket.close();
  say("closed:", attempt(() => a.send("x", 1, HOST)), attempt(() => a.address()), attempt(() => a.close()));
}

async function options() {
  const a = await bound();
  say("TTL:", a.setTTL(1), a.setTTL(255), attempt(() => a.setTTL(0)), attempt(() => a.setTTL(256)), attempt(() => a.setTTL("1")));
  say("multicast TTL:", a.setMulticastTTL(3), attempt(() => a.setMulticastTTL(256)));
  say("loopback:", a.setMulticastLoopback(true), "broadcast:", a.setBroadcast(true));
  a.setRecvBufferSize(20000), a.setSendBufferSize(20000);
  say("buffers:", a.getRecvBufferSize(), a.getSendBufferSize(), attempt(() => a.setRecvBufferSize(-1)));
  const sized = await bound({ type: "udp4", recvBufferSize: 10000, sendBufferSize: 12000 });
  say("from the start:", sized.getRecvBufferSize(), sized.getSendBufferSize());
  const six = await bound({ type: "udp6", ipv6Only: false }, { address: "::", port: 0 });
  const mapped = next(six);
  say("IPv6 for both:", await send(a, "mapped", six.address().port, HOST), (await mapped).from.address, (await mapped).from.family);
  const found = open({ type: "udp4", lookup: (name, options, done) => done(null, HOST, 4) });
  const asked = next(a);
  say("a lookup of its own:", await send(found, "by name", a.address().port, "some.name"), (await asked).text);
  for (const socket of [a, sized, six, found]) socket.close();
}

async function ending() {
  const stop = new AbortController();
  const a = open({ type: "udp4", signal: stop.signal });
  await new Promise((done) => a.bind(0, HOST, done));
  const closed = events.once(a, "close");
  stop.abort();
  await closed;
  say("closed by a signal:", attempt(() => a.address()));
  const b = await bound();
  say("unref, ref:", b.unref() === b, b.ref() === b);
  // Neither holds the process: it ends although they are open.
  b.unref();
  (await bound()).unref();
}

(async () => {
  for (const part of [binding, sending, connecting, options, ending]) {
    say(`-- ${part.name}`);
    await part();
  }
})();
