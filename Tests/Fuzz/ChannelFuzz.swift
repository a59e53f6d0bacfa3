import CLinux
import CMachnetABI
import EngineBench
import Glibc
import MachnetChannel
import MachnetEngine
import MachnetSimulation
import MachnetTransport

// What a program that lies can write into the memory that it shares with the engines, at any time.
//
// An input is the life of such a program: a list of steps; a step begins with a byte, whose three low bits say which
// (`LiarStep`), and whose bits 4 and 5 say of which of its four sockets. What a step lacks at the input's end is zeros. Real
// engines run in virtual time, on a network of two hosts. On the liar's host there is another program, whose datagrams to itself
// and to the other host, and from there, must arrive whatever is written; nobody may touch memory beyond a channel, every packet
// must come back, and the other program's channel must not be taken for damaged.

enum LiarStep: UInt8 {
  /// Offset in the channel (3 bytes), a count (1), and as many bytes.
  case write
  /// A word (1: `Liar.word`) and its new value (4); with bit 7 of the word, what is added to the old one.
  case word
  /// The same, but for 20 us of the engines the word changes between both values all the time, whenever they look.
  case race
  /// A datagram: `Liar.send` (1), length (2), segment (2).
  case send
  /// Takes what has arrived, from all its sockets.
  case receive
  /// Time that passes (1): below 64 units of 0.5 us, half of what a round of an engine takes; from there on units of 16 us.
  case time
  /// The others: lengths of a datagram each way (2 each).
  case others
  /// The socket: 0 closes it, 1 opens it, 2 connects it, 3 disconnects it, 4 starts a capture, 5 ends it, else a channel anew (1).
  case control
}

@safe
final class Liar {
  static let stepMax = 128
  private static let sockets = 4

  private let world: SimulatedWorld
  private let host: SimulatedHost
  private let remote: SimulatedHost
  private var channel: TestChannel
  private var applications: [Application] = []
  private var isOpen = [Bool](repeating: true, count: Liar.sockets)
  /// Channels of former lives, whose memory engines may still look at.
  private var past: [TestChannel] = []
  /// Of a capture that it has started; the engine copies frames into it.
  private var capture: TestCapture?
  private var captures: [TestCapture] = []
  private let honest: Application
  private let honestToo: Application
  private let far: Application
  private var ledger = Ledger()
  private var isReliable: [Bool] = []

  init() {
    world = SimulatedWorld(seed: 7, buffers: 4096)
    func configure(_ options: inout EngineOptions) {
      options.transport.sessions = 16
      options.transport.buffers = 256
      options.transport.assemblies = 8
      options.transport.largeAssemblies = 1
      options.parkings = 2
    }
    host = world.addHost(engines: 1, configure: configure)
    remote = world.addHost(engines: 1, configure: configure)
    honest = host.open(port: 3000)
    honestToo = host.open(port: 3001)
    far = remote.open(port: 2000)
    channel = host.attach()
    attach()
    others(64, 64)
    settle()
  }

  private func attach() {
    applications = (0..<Liar.sockets).map { host.open(port: UInt16(1000 + $0), in: channel) }
    isOpen = [Bool](repeating: true, count: Liar.sockets)
  }

  func take(_ input: Input) {
    let head = input.byte()
    let socket = Int(head >> 4 & 3)
    switch LiarStep(rawValue: head & 7)! {
    case .write:
      let offset = Int(input.byte()) << 16 | Int(input.word())
      let bytes = input.bytes(Int(input.byte()))
      for (place, byte) in bytes.enumerated() {
        unsafe channel.base.storeBytes(of: byte, toByteOffset: (offset + place) % channel.size, as: UInt8.self)
      }
    case .word:
      let (word, _, new) = change(input, socket)
      word.set(new)
    case .race:
      let (word, old, new) = change(input, socket)
      let racer = Racer(word, old, new)
      world.run(for: 20_000)
      racer.end()
    case .send:
      send(input.byte(), length: Int(input.word()), segment: Int(input.word()), from: applications[socket])
    case .receive:
      for application in applications { _ = application.receive() }
    case .time:
      let units = UInt64(input.byte())
      world.run(for: units < 64 ? units * 500 : (units - 63) * 16_000)
    case .others:
      others(Int(input.word()), Int(input.word()))
    case .control:
      control(input.byte(), socket)
    }
    takeFaults()
    collect()
  }

  /// The control thread hears of damaged channels, and takes them away; the program attaches again.
  private func takeFaults() {
    for control in host.controls {
      while case .channelDamaged(let identifier)? = control.nextFault() {
        require(identifier != honest.channel.identifier, "another program's channel is taken for damaged")
        if identifier == channel.identifier { renew() }
      }
    }
  }

  private func renew() {
    if past.count >= 8 { return }
    host.detach(channel)
    past.append(channel)
    world.run(for: 3_000_000)
    channel = host.attach()
    attach()
  }

  private func control(_ what: UInt8, _ socket: Int) {
    let engine = host.controls[0]
    let it = applications[socket]
    switch what {
    case 0:
      isOpen[socket] = false
      _ = try? engine.closeEndpoint(it.reference)
    case 1:
      if isOpen[socket] { return }
      isOpen[socket] = true
      _ = try? engine.openEndpoint(it.reference, EndpointIdentity(0, UInt16(1000 + socket), it))
    case 2:
      _ = try? engine.connectEndpoint(it.reference, peerAddress: remote.address, peerPort: 2000, localAddress: host.address)
    case 3:
      _ = try? engine.connectEndpoint(it.reference, peerAddress: 0, peerPort: 0, localAddress: 0)
    case 4:
      let made = TestCapture()
      if unsafe (try? engine.capture(into: made.base, snap: 128)) != nil {
        capture = made
        captures.append(made)
      }
    case 5:
      if unsafe (try? engine.capture(into: nil)) != nil { capture = nil }
    default:
      renew()
    }
    // The orders of one engine are limited; they are carried out in its next round.
    world.run(for: 10_000)
  }

  // MARK: What it writes

  @safe
  private struct Word {
    /// Safety: lies in the channel, or a capture's memory; aligned to its size.
    let at: UnsafeMutableRawPointer
    let isWide: Bool

    var value: UInt64 { unsafe isWide ? mn_load_relaxed_u64(at) : UInt64(mn_load_relaxed_u32(at)) }
    func set(_ value: UInt64) {
      if isWide { unsafe mn_store_relaxed_u64(at, value) } else { unsafe mn_store_relaxed_u32(at, UInt32(truncatingIfNeeded: value)) }
    }
  }

  private func change(_ input: Input, _ socket: Int) -> (Word, old: UInt64, new: UInt64) {
    let which = input.byte()
    let value = Int64(Int32(bitPattern: UInt32(input.word()) << 16 | UInt32(input.word())))
    let word = word(Int(which & 127), socket)
    let old = word.value
    let new = which & 128 != 0 ? old &+ UInt64(bitPattern: value) : UInt64(bitPattern: value)
    return (word, old, new)
  }

  /// Every word that an engine looks at, by number: of the endpoint 0 to 9, of its rings 10 to 14, of the record that its TX ring's
  /// reader comes to next 16 to 31, of the ready bits 32 to 35, of the channel's head 36 to 49, of a capture 50 to 54.
  private func word(_ number: Int, _ socket: Int) -> Word {
    let block = unsafe channel.block(UInt32(socket))
    let tx = unsafe channel.txRing(UInt32(socket))
    let rx = unsafe channel.rxRing(UInt32(socket))
    switch number {
    case 0...9:
      let offset = [0, 4, 8, 16, 20, 64, 68, 72, 76, 128][number]
      return unsafe Word(at: block + offset, isWide: number == 2)
    case 10, 11: return unsafe Word(at: tx + 64 * (number - 10), isWide: true)
    case 12, 13: return unsafe Word(at: rx + 64 * (number - 12), isWide: true)
    case 14, 15: return unsafe Word(at: rx + Int(MN_OFFSET_RING_CHARGE_TAKEN), isWide: true)
    case 16...31:
      let head = Int(unsafe mn_load_relaxed_u64(tx + 64) & UInt64(TestChannel.txCapacity - 1) & ~63)
      return unsafe Word(at: tx + MemoryLayout<mn_ring>.size + head + 4 * (number - 16), isWide: false)
    case 32...35: return unsafe Word(at: channel.ready() + 8 * (number - 32), isWide: true)
    case 36...49: return unsafe Word(at: channel.base + 4 * (number - 36), isWide: false)
    default:
      guard let capture else { return unsafe Word(at: block, isWide: false) }
      return unsafe Word(at: capture.base + [64, 128, 192, 8, 0][number % 5], isWide: number % 5 < 3)
    }
  }

  /// Two bits of `how` say where to; bit 2: over a session; bit 3: from an address of its own; bit 4: do not fragment.
  private func send(_ how: UInt8, length: Int, segment: Int, from application: Application) {
    let targets: [(UInt32, UInt16)] = [(remote.address, 2000), (host.address, 3000), (ip(127, 0, 0, 1), 1001), (ip(10, 0, 0, 99), 9)]
    let (address, port) = targets[Int(how & 3)]
    _ = application.send(
      [UInt8](repeating: how, count: min(length, Int(MN_DATAGRAM_MAX))), to: address, port, segment: segment,
      source: how & 8 != 0 ? host.address : nil, dontFragment: how & 16 != 0, machnet: how & 4 != 0)
  }

  /// Writes one word, by turns, for as long as it lives.
  @safe
  private final class Racer {
    /// Safety: owned; the thread reads it. The word to write, its two values, 1: it is wide, 1: the end.
    private let orders = UnsafeMutablePointer<UInt64>.allocate(capacity: 5)
    private var thread = pthread_t()

    init(_ word: Word, _ old: UInt64, _ new: UInt64) {
      let values = unsafe [UInt64(UInt(bitPattern: word.at)), old, new, word.isWide ? 1 : 0, 0]
      for (place, value) in values.enumerated() { unsafe (orders + place).initialize(to: value) }
      let status = unsafe pthread_create(&thread, nil, { argument in
        let orders = unsafe argument!.assumingMemoryBound(to: UInt64.self)
        let word = unsafe Word(at: UnsafeMutableRawPointer(bitPattern: UInt(orders[0]))!, isWide: orders[3] == 1)
        repeat {
          unsafe word.set(orders[2])
          unsafe word.set(orders[1])
        } while unsafe mn_load_acquire_u64(orders + 4) == 0
        unsafe word.set(orders[2])
        return nil
      }, orders)
      precondition(status == 0)
    }

    func end() {
      unsafe mn_store_release_u64(orders + 4, 1)
      _ = pthread_join(thread, nil)
      unsafe orders.deallocate()
    }
  }

  // MARK: The others

  /// A message each way, and a datagram within the host.
  private func others(_ there: Int, _ back: Int) {
    for (application, address, port, length) in [
      (honest, remote.address, 2000, there), (far, host.address, 3000, back),
    ] as [(Application, UInt32, UInt16, Int)] {
      let payload = Ledger.payload(ledger.sent, max(4, min(length, Int(MN_DATAGRAM_MAX))))
      if application.send(payload, to: address, port, machnet: true) {
        ledger.sent += 1
        isReliable.append(true)
      }
    }
    if honestToo.send(Ledger.payload(ledger.sent, 100), to: host.address, 3000) {
      ledger.sent += 1
      isReliable.append(false)
    }
  }

  /// What the liar sent has other ports; the rest must be as it was sent.
  private func collect() {
    for application in [honest, honestToo, far] {
      while let datagram = application.receive() {
        if ![2000, 3000, 3001].contains(datagram.remotePort) { continue }
        guard let number = ledger.take(datagram.payload) else {
          require(false, "\(ledger.broken)")
          return
        }
        require(ledger.arrivals[number] == 1 || !isReliable[Int(number)], "number \(number) came twice")
      }
    }
  }

  private var missing: Int { isReliable.indices.count { isReliable[$0] && ledger.arrivals[UInt32($0)] == nil } }

  private func settle() {
    let end = world.now + 5_000_000_000
    while missing > 0 && world.now < end {
      world.run(for: 100_000)
      takeFaults()
      collect()
    }
  }

  func end() {
    settle()
    // A full socket may lose what nobody has room for; it is counted.
    let lost = [host, remote].reduce(0) { sum, it in
      sum + [DropReason.sessionLost, .peerPaused, .receiveRingFull, .peerRefused].reduce(0) { $0 + Int(it.count($1)) }
    }
    require(missing <= lost, "\(missing) messages are missing, \(lost) drops were counted")
    for index in isReliable.indices { isReliable[index] = false }
    // And nothing of what was written hinders anybody now.
    others(3000, 3000)
    let last = (0..<3).map { ledger.sent - 1 - $0 }
    let limit = world.now + 2_000_000_000
    while last.contains(where: { ledger.arrivals[$0] == nil }) && world.now < limit {
      world.run(for: 100_000)
      takeFaults()
      collect()
    }
    require(last.allSatisfy { ledger.arrivals[$0] == 1 }, "the others are hindered: \(host.drops) \(remote.drops)")
    precondition(!honest.channel.isDamaged && !far.channel.isDamaged)
    if capture != nil { _ = unsafe try? host.controls[0].capture(into: nil) }
    world.run(for: 10_000)
    require(world.end(), "packets are missing")
  }
}

/// A capture's memory as the daemon would make it; whoever reads or writes beyond it dies.
@safe
final class TestCapture {
  /// Safety: `MN_PAGE + MN_CAPTURE_DATA` bytes between two pages that nobody can touch; owned.
  let base: UnsafeMutableRawPointer
  private static let size = Int(MN_PAGE + MN_CAPTURE_DATA)

  init() {
    let guarded = unsafe mn_linux_map(TestCapture.size + 2 * Int(MN_PAGE))!
    unsafe base = guarded + Int(MN_PAGE)
    precondition(
      unsafe mprotect(guarded, Int(MN_PAGE), PROT_NONE) == 0
        && mprotect(base + TestCapture.size, Int(MN_PAGE), PROT_NONE) == 0)
  }

  deinit { unsafe mn_linux_unmap(base - Int(MN_PAGE), TestCapture.size + 2 * Int(MN_PAGE)) }
}
