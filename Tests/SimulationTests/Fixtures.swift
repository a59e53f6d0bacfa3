import Glibc
import MachnetEngine
import MachnetSimulation
import MachnetWire
import Synchronization

/// The seed of this run: `SEED=` replays one.
let runSeed: UInt64 = {
  if let text = unsafe getenv("SEED"), let seed = unsafe UInt64(String(cString: text)) { return seed }
  return UInt64.random(in: 1...UInt64.max)
}()

/// Memory for a payload or a frame. It stays to the end of the run: `bytes` do not hold what they belong to.
@safe struct Memory {
  let bytes: Bytes
  /// Addresses of all, so that none is lost.
  private static let kept = Mutex<[UInt]>([])

  init(_ count: Int, filledWith byte: UInt8 = 0) {
    let base = UnsafeMutableRawPointer.allocate(byteCount: max(1, count), alignment: 64)
    unsafe base.initializeMemory(as: UInt8.self, repeating: byte, count: count)
    bytes = unsafe Bytes(unsafe: base, count: count)
    Memory.kept.withLock { $0.append(UInt(bitPattern: base)) }
  }

  init(_ content: [UInt8]) {
    self.init(content.count)
    for (index, byte) in content.enumerated() { bytes.set8(index, byte) }
  }
}

func array(_ bytes: Bytes) -> [UInt8] { (0..<bytes.count).map { bytes.u8($0) } }

func ip(_ a: UInt32, _ b: UInt32, _ c: UInt32, _ d: UInt32) -> UInt32 { a << 24 | b << 16 | c << 8 | d }

func mac(_ host: Int) -> UInt64 { 0x0200_0000_0000 | UInt64(host + 1) }
func address(_ host: Int) -> UInt32 { ip(10, 0, UInt32(host + 1) >> 8, UInt32(host + 1) & 255) }

/// Hosts around a switch.
func network(
  _ hosts: Int = 2, queues: Int = 1, seed: UInt64 = runSeed, buffers: Int = 65_536, link: LinkOptions = LinkOptions()
) -> SimulatedNetwork {
  let network = SimulatedNetwork(seed: seed, buffers: buffers)
  for host in 0..<hosts {
    var options = HostOptions(mac: mac(host), address: address(host), queues: queues)
    options.link = link
    _ = network.addHost(options)
  }
  return network
}

/// Sends `count` numbered datagrams from host 0 to host 1, one per `gap` ns, and gives what arrives, in order: number
/// and time; number -1: an engine would drop it.
@discardableResult
func exchange(
  _ network: SimulatedNetwork, count: Int, gap: UInt64 = 2_000, payload: Int = 64
) -> [(number: Int, time: UInt64)] {
  let memory = Memory(max(4, payload), filledWith: 0x5A)
  var got: [(number: Int, time: UInt64)] = []
  func take(until limit: UInt64) {
    while let arrival = network.next(until: limit) {
      guard arrival.host == 1 else { continue }
      got.append((arrival.udp.map { Int($0.payload.u32(0)) } ?? -1, arrival.time))
    }
  }
  for number in 0..<count {
    memory.bytes.set32(0, UInt32(number))
    precondition(network.sendUDP(memory.bytes, from: 0, to: 1, sourcePort: 1000, destinationPort: 2000))
    take(until: network.now + gap)
  }
  take(until: UInt64.max)
  return got
}

/// Whether `count` of `total` is what a probability makes likely: within 5 standard deviations.
func isLikely(_ count: UInt64, of total: Int, _ probability: Double) -> Bool {
  let expected = Double(total) * probability
  let deviation = (expected * (1 - probability)).squareRoot()
  return abs(Double(count) - expected) <= 5 * deviation + 1
}
