// UDP echo by the workers of Node's cluster: the primary binds the socket and passes it to them. Prints a line per datagram.
const cluster = require("node:cluster");
const dgram = require("node:dgram");

const [address, port, workers] = process.argv.slice(2);
if (cluster.isPrimary) {
  let listening = 0;
  cluster.on("listening", () => {
    if (++listening === Number(workers)) console.log("ready");
  });
  cluster.on("message", (worker) => console.log(`datagram at worker ${worker.id}`));
  for (let i = 0; i < Number(workers); i++) cluster.fork();
} else {
  const socket = dgram.createSocket("udp4");
  socket.on("message", (data, peer) => {
    process.send("datagram");
    socket.send(data, peer.port, peer.address);
  });
  socket.bind(Number(port), address);
}
