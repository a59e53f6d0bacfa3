public import MachnetEngine

/// The configuration of a daemon, read and checked. What the YAML says in words is here in the units that code uses.
public struct Config: Sendable, Equatable {
  public var interfaces: [Interface] = []
  public var engine = Engine()
  public var control = Control()
  public var channel = Channel()
  public var waiting = Waiting()
  /// By name: what `machnet run --profile NAME` changes of `waiting` for one program.
  public var profiles = Profile.builtIn
  public var limits = Limits()
  public var transport = Transport()
  public var metrics = Metrics()
  public var flows: [Flow] = []

  public init() {}

  /// An address that engines own, and the device that it lives on.
  public struct Interface: Sendable, Equatable {
    public var name: String
    public var prefix: IPv4Prefix
    public var gateway: IPv4Address?
    public var device: Device
    /// Bytes of the IP layer; nil: what the device has.
    public var mtu: Int?
    /// Engines that serve the interface, 1...16.
    public var queues = 1

    public enum Device: Sendable, Equatable {
      /// `domain:bus:device.function[,key=value]...`, as DPDK writes it: the domain is there, letters are small
      case pci(String)
      /// A network device of Hyper-V's VMBus, by its UUID in small letters; and the PCI address, as above, of the virtual
      /// function that shares its Ethernet address
      case vmbus(String, virtualFunction: String?)
      /// A DPDK virtual device, `net_DRIVER...[,key=value]...`
      case vdev(String)
    }
  }

  public struct Engine: Sendable, Equatable {
    /// One engine thread each, pinned; empty: one engine, not pinned.
    public var cpus: [Int] = []
    public var polling = Polling.adaptive
    /// How long an engine without work goes on polling before it sleeps, 0...1,000,000.
    public var idleMicroseconds = 200
    /// Each interface is a host of its own: what one sends to the other goes over the wire.
    public var separateHosts = false
    /// An engine that has made no round for so long ends the daemon; 0: none does. 0...3600.
    public var stallSeconds = 10

    public var count: Int { max(1, cpus.count) }
  }

  public struct Control: Sendable, Equatable {
    public var socket = defaultControlSocket
    /// Of the socket's file.
    public var mode: UInt32 = 0o660
    /// Who besides the daemon's user may attach; nil: the daemon's own group.
    public var group: String?
    /// Whose members may reload and capture, as root and the daemon's user may; nil: nobody else.
    public var operators: String?
  }

  public struct Channel: Sendable, Equatable {
    /// Sockets that one channel holds, 1...256.
    public var endpoints = 256
    /// Bytes of a ring's data, powers of two, 256K...64M.
    public var transmitRing = 256 << 10
    public var receiveRing = 1 << 20
    public var maximumPerProcess = 64
    /// Of the whole daemon.
    public var maximumEndpoints = 16384
  }

  /// How a waiting call of an application waits.
  public struct Waiting: Sendable, Equatable {
    /// How long it looks at the rings before it sleeps, 0...1,000,000.
    public var spinMicroseconds = 50
    /// Whether it yields its CPU between looks; nil: where the machine has at most four.
    public var yields: Bool?

    public func yields(processors: Int) -> Bool { yields ?? (processors <= 4) }
  }

  /// How single programs wait, and what makes it cheap for the kernel to switch between them.
  public struct Profile: Sendable, Equatable {
    /// 0...1,000,000; nil: as the daemon says.
    public var spinMicroseconds: Int?
    /// nil: as the daemon says.
    public var yields: Bool?
    /// false: glibc registers no restartable sequences (rseq(2)), which the kernel tends at each switch; sched_getcpu(3) asks the vDSO
    /// then. nil, true: as glibc does by itself.
    public var restartableSequences: Bool?
    /// SCHED_FIFO at that priority, 1...99 (sched(7)); nil: as the program is started.
    public var fifo: Int?

    public init(spinMicroseconds: Int? = nil, yields: Bool? = nil, restartableSequences: Bool? = nil, fifo: Int? = nil) {
      self.spinMicroseconds = spinMicroseconds
      self.yields = yields
      self.restartableSequences = restartableSequences
      self.fifo = fifo
    }

    /// There without a config; a config may say otherwise.
    public static let builtIn: [String: Profile] = [
      // A wait of up to a millisecond costs no wake-up, and a whole core.
      "latency": Profile(spinMicroseconds: 1000),
      // Sleeps soon, so that a burst gathers before the thread is woken for it.
      "throughput": Profile(spinMicroseconds: 10),
      // Engine or peer run on the same core: each look gives it away.
      "shared-core": Profile(spinMicroseconds: 50, yields: true, restartableSequences: false),
      // The same, and nobody else gets that core meanwhile.
      "real-time": Profile(spinMicroseconds: 50, yields: true, restartableSequences: false, fifo: 1),
    ]

    /// How the preload library gets to know: environment variables and their values.
    public var environment: [(name: String, value: String)] {
      var variables: [(String, String)] = []
      if let spinMicroseconds { variables.append(("MACHNET_SPIN_US", "\(spinMicroseconds)")) }
      if let yields { variables.append(("MACHNET_YIELD", "\(yields)")) }
      return variables
    }

    /// How glibc gets to know: what is to be among the program's GLIBC_TUNABLES.
    public var tunables: [String] { restartableSequences == false ? ["glibc.pthread.rseq=0"] : [] }
  }

  public struct Limits: Sendable, Equatable {
    /// Control connections at a time, of all users.
    public var connections = 4096
    /// Control connections at a time of one user other than root.
    public var connectionsPerUser = 1024
  }

  /// Of the transport `machnet`.
  public struct Transport: Sendable, Equatable {
    /// UDP ports that belong to sessions, on the addresses that engines own.
    public var ports: ClosedRange<UInt16> = 62_000...62_255
    /// Queueing delay that congestion control aims at, 10...10,000.
    public var targetDelayMicroseconds = 100
    /// Of an engine and interface, a power of two, 2...16384.
    public var sessions = 1024
    /// Of an engine and interface: packets that are on their way or about to be, each of an MTU, 64...65536.
    public var packets = 8192
    /// Of an engine and interface: messages in several packets that are being put together, of 64 KiB each, 8...4096; a
    /// session has a quarter of them at most.
    public var assemblies = 256
    /// Of an engine and interface: such messages of more than 64 KiB, 8 MiB each, 0...64.
    public var largeAssemblies = 4
    /// Of an engine: what messages may take that have arrived for sockets without room, MiB, 1...256; of one socket, 1 MiB.
    public var parkings = 16
    /// How long a message waits for a remote socket that has no room, 0...10,000.
    public var pauseMilliseconds = 250
  }

  /// Metrics for Prometheus.
  public struct Metrics: Sendable, Equatable {
    /// nil: nowhere.
    public var listen: Listen?

    public enum Listen: Sendable, Equatable, CustomStringConvertible {
      /// A loopback address.
      case address(String, port: Int)
      /// A Unix socket, with the control socket's mode and group.
      case path(String)

      public var description: String {
        switch self {
        case .address(let host, let port): "\(host):\(port)"
        case .path(let path): path
        }
      }
    }
  }

  /// One line of the allowlist.
  public struct Flow: Sendable, Equatable {
    /// File name of the executable; empty: any; a trailing `*` stands for any ending.
    public var program = ""
    public var local = AddressPattern.any
    public var remote = AddressPattern.any
    public var path: Path
    public var transport = Kind.udp
    public var onEngineLoss = EngineLoss.kernel
    /// Where the file says it, from 1.
    public var line: Int

    public enum Path: String, Sendable, CaseIterable { case kernel, machnet }
    /// Of datagrams to other hosts.
    public enum Kind: String, Sendable, CaseIterable { case udp, machnet }
    public enum EngineLoss: String, Sendable, CaseIterable { case kernel, error }
  }
}

/// Where programs look for the daemon unless `MACHNET_SOCKET` says otherwise.
public let defaultControlSocket = "/run/machnet/machnetd.sock"

/// A mistake in a config file.
public struct ConfigMistake: Error, Hashable, Sendable {
  /// From 1; 0 where the whole file is meant.
  public let line: Int
  public let column: Int
  /// `expected ..., found ...`
  public let message: String

  public func description(file: String) -> String {
    line == 0 ? "\(file): error: \(message)" : "\(file):\(line):\(column): error: \(message)"
  }
}

/// All mistakes of a file, in the file's order. Never empty.
public struct ConfigMistakes: Error, Sendable {
  public let mistakes: [ConfigMistake]

  public func description(file: String) -> String {
    mistakes.map { $0.description(file: file) }.joined(separator: "\n")
  }
}
