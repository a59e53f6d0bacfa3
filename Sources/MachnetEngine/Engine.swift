import CLinux
import CMachnetABI
import MachnetChannel

/// One polling thread's work: packets of its ports on one side, the rings of applications on the other.
///
/// Made and run on the engine's own thread; everything else talks to it through its `EngineControl`. This is the shell:
/// it moves bursts between the packet I/O of its ports and the `Core`, and decides when to rest.
@safe
public struct Engine<IO: PacketIO & ~Copyable>: ~Copyable {
  private let control: EngineControl
  private let polling: Polling
  private let sharesCore: Bool
  private let idleLimit: UInt64
  private let epoll: Int32
  var core: Core
  /// Safety: room for `EngineLimits.ports`; the first `portCount` are initialised. Owned by the engine.
  private let ports: UnsafeMutablePointer<IO>
  private(set) var portCount = 0
  private var idleSince: UInt64 = 0
  private var nextTick: UInt64 = 0
  private var nextCalibration: UInt64 = 0

  public init(control: EngineControl) {
    self.control = control
    polling = control.options.polling
    sharesCore = control.options.sharesCore
    idleLimit = UInt64(max(0, control.options.idleMicroseconds)) * 1000
    epoll = control.epoll
    core = Core(control: control)
    unsafe ports = .allocate(capacity: EngineLimits.ports)
  }

  deinit {
    unsafe ports.deinitialize(count: portCount)
    unsafe ports.deallocate()
  }

  /// Gives the engine the queue of the next interface of its options.
  public mutating func add(port: consuming IO) {
    precondition(portCount < control.options.interfaces.count, "more ports than interfaces")
    if port.wakeDescriptor >= 0 { _ = mn_linux_epoll_add(epoll, port.wakeDescriptor, 1) }
    core.addPort(control.options.interfaces[portCount])
    unsafe (ports + portCount).initialize(to: port)
    portCount += 1
  }

  /// Works until `EngineControl.stop`, then gives every packet back.
  public mutating func run() {
    idleSince = core.clock.now()
    while !isStopped {
      if iterate() {
        idleSince = core.now
        if sharesCore && core.wokeSomebody { mn_linux_yield() }
        continue
      }
      switch polling {
      case .busy:
        mn_pause()
      case .yield:
        mn_linux_yield()
      case .adaptive:
        if core.now &- idleSince < idleLimit {
          mn_linux_yield()
        } else {
          sleep()
          idleSince = core.clock.now()
        }
      }
    }
    finish()
  }

  public var isStopped: Bool { core.mailbox.load(Mailbox.stop) != 0 }

  /// One round: orders, arrivals, senders, departures, timers.
  ///
  /// - Returns: whether there was anything to do.
  public mutating func iterate() -> Bool {
    core.begin()
    var progress = core.takeCommands()
    if portCount != 0 && receive() { progress = true }
    core.scanReady(all: false)
    if core.serveActive() { progress = true }
    if portCount != 0 && transmit() { progress = true }
    if core.now >= nextTick { tick() }
    return progress
  }

  /// The slow tick: timers of the core, and now and then the clock itself.
  private mutating func tick() {
    nextTick = core.now + 10_000_000
    if core.now >= nextCalibration {
      nextCalibration = core.now + 1_000_000_000
      core.clock.calibrate()
    }
  }

  private mutating func receive() -> Bool { false }
  private mutating func transmit() -> Bool { false }

  // MARK: Rest

  /// Sleeps until somebody has work. Nobody who publishes work can miss that the engine sleeps: it says so, then looks
  /// everywhere once more.
  private mutating func sleep() {
    let word = unsafe core.directory.engineWord(core.index)
    unsafe mn_store_relaxed_u32(word, 1)
    // Pairs with the fence between an application's publish and its look at this word.
    mn_fence()
    if !core.hasWork() {
      core.mailbox.count(.sleeps)
      _ = mn_linux_epoll_wait(epoll, -1)
    }
    unsafe mn_store_relaxed_u32(word, 0)
  }

  private mutating func finish() {}
}
