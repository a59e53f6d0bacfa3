// UDP echo with Node's dgram; used as blocking_echo.py.
const dgram = require("node:dgram");

const [role, address, port, count, sizes] = process.argv.slice(2);
const socket = dgram.createSocket("udp4");

function payload(number, size) {
  const bytes = Buffer.alloc(size);
  for (let i = 0; i < size; i++) bytes[i] = i < 4 ? (number >>> (24 - 8 * i)) & 255 : (number + i - 4) % 251;
  return bytes;
}

if (role === "server") {
  socket.on("message", (data, peer) => socket.send(data, peer.port, peer.address));
  socket.bind(Number(port), address);
} else {
  const wanted = sizes.split(",").map(Number);
  let number = 0, attempts = 0, sent, timer;
  const send = () => {
    if (++attempts > 10) {
      console.error(`no echo of datagram ${number}, ${sent.length} bytes`);
      process.exit(1);
    }
    socket.send(sent, Number(port), address);
    timer = setTimeout(send, 1000);
  };
  const next = () => {
    if (number === Number(count)) {
      console.log(`ok ${count}`);
      socket.close();
      return;
    }
    sent = payload(number, wanted[number % wanted.length]);
    attempts = 0;
    send();
  };
  socket.on("message", (data, peer) => {
    if (!data.equals(sent) || peer.address !== address) return;
    clearTimeout(timer);
    number++;
    next();
  });
  next();
}
