/// What can go wrong with a frame on its way. Probabilities are 0...1 per frame.
public struct Faults: Sendable, Equatable {
  public var loss = 0.0
  /// Mean length of a run of losses, frames (a Gilbert channel); up to 1/(1 - loss) each loss stands for itself.
  public var lossBurst = 1.0
  public var duplication = 0.0
  /// How far the copy is behind the original, ns.
  public var duplicationDelay: ClosedRange<UInt64> = 0...50_000
  /// Frames that are held up, so that others overtake them.
  public var reordering = 0.0
  /// How long those are held up, ns.
  public var reorderingDelay: ClosedRange<UInt64> = 10_000...200_000
  /// Of IPv4 frames: what they hold has checksums. (A wrong ARP packet, on real links, is one that Ethernet's own check
  /// sequence drops.)
  public var corruption = 0.0
  /// Bits that a corrupted frame has wrong, anywhere. Checksums always find one (where they cover it), two not always.
  public var corruptedBits: ClosedRange<UInt64> = 1...1
  /// A canary: corruption flips bits of UDP payloads only, and makes the checksum right again. No receiver can see
  /// that; a check from outside must.
  public var repairsChecksum = false

  public static let none = Faults()

  public init() {}

  public init(
    loss: Double = 0, duplication: Double = 0, reordering: Double = 0, corruption: Double = 0
  ) {
    self.loss = loss
    self.duplication = duplication
    self.reordering = reordering
    self.corruption = corruption
  }
}

/// Something that comes at random intervals and stays for random times, ns.
public struct Schedule: Sendable, Equatable {
  /// From one beginning to the next.
  public var interval: ClosedRange<UInt64>
  public var duration: ClosedRange<UInt64>

  public init(interval: ClosedRange<UInt64>, duration: ClosedRange<UInt64>) {
    self.interval = interval
    self.duration = duration
  }
}

/// Which faults a run has, and how much of each, drawn from its seed: most bugs need some faults together and others
/// absent (Groce et al., "Swarm Testing", ISSTA 2012).
public struct Swarm: Sendable, Equatable {
  public var faults = Faults()
  public var link = LinkOptions()
  public var partitions: Schedule? = nil
  public var restarts: Schedule? = nil

  public init(seed: UInt64) {
    var random = RandomStream(seed: seed, name: "swarm")
    func isOn() -> Bool { random.below(2) == 0 }
    func one<T>(_ values: [T]) -> T { values[Int(random.below(UInt64(values.count)))] }
    if isOn() {
      faults.loss = one([0.001, 0.01, 0.02, 0.05, 0.1, 0.2])
      faults.lossBurst = one([1, 1, 2, 8])
    }
    if isOn() {
      faults.duplication = one([0.001, 0.01, 0.05, 0.2])
      faults.duplicationDelay = 0...one([0, 1_000, 100_000, 5_000_000])
    }
    if isOn() {
      faults.reordering = one([0.001, 0.01, 0.1, 0.5])
      faults.reorderingDelay = 1_000...one([10_000, 100_000, 2_000_000])
    }
    if isOn() {
      faults.corruption = one([0.001, 0.01, 0.05])
    }
    link.bandwidth = one([100_000_000, 1_000_000_000, 10_000_000_000, 25_000_000_000])
    link.delay = one([500, 5_000, 12_500, 100_000, 1_000_000])
    if isOn() { link.jitter = link.delay / one([1, 2, 10]) }
    link.queueLimit = one([16_384, 65_536, 262_144, 1 << 20])
    if random.below(4) == 0 {
      partitions = Schedule(interval: 10_000_000...200_000_000, duration: 1_000_000...one([20_000_000, 300_000_000]))
    }
    if random.below(4) == 0 {
      restarts = Schedule(interval: 20_000_000...400_000_000, duration: 0...one([0, 10_000_000, 100_000_000]))
    }
  }
}
