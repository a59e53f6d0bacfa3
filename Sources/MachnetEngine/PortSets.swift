import MachnetMemory

/// A set of UDP ports for each session of a transport: a bit for each port, so that no set is ever full, and a look takes the
/// same time however many there are. Memory of sets that were always empty is never touched.
@safe
struct PortSets {
  private let words: Table<UInt64>
  private let counts: Table<UInt32>
  /// Which use of a session's slot its set is about.
  private let generations: Table<UInt32>
  /// Ports in all sets.
  private(set) var count = 0

  private static var wordsOfSession: Int { @_noLocks get { 1024 } }
  /// Bytes of a session.
  static var stride: Int { wordsOfSession * MemoryLayout<UInt64>.stride + 2 * MemoryLayout<UInt32>.stride }

  init(sessions: Int) {
    words = Table(count: sessions * PortSets.wordsOfSession)
    counts = Table(count: sessions)
    generations = Table(count: sessions)
  }

  func release() {
    words.release()
    counts.release()
    generations.release()
  }

  var sessions: Int { @_noLocks get { counts.count } }

  @inline(__always) @_noLocks
  private func place(_ session: UInt32, _ port: UInt16) -> (word: Int, bit: UInt64) {
    (Int(session) &* PortSets.wordsOfSession &+ Int(port >> 6), 1 << UInt64(port & 63))
  }

  @_noLocks
  func contains(_ session: UInt32, _ generation: UInt32, _ port: UInt16) -> Bool {
    if counts[session] == 0 || generations[session] != generation { return false }
    let (word, bit) = place(session, port)
    return words[word] & bit != 0
  }

  @_noLocks
  mutating func insert(_ session: UInt32, _ generation: UInt32, _ port: UInt16) {
    if generations[session] != generation {
      clear(session)
      generations[session] = generation
    }
    let (word, bit) = place(session, port)
    if words[word] & bit != 0 { return }
    words[word] |= bit
    counts[session] &+= 1
    count &+= 1
  }

  @_noLocks
  mutating func remove(_ session: UInt32, _ generation: UInt32, _ port: UInt16) {
    if !contains(session, generation, port) { return }
    let (word, bit) = place(session, port)
    words[word] &= ~bit
    counts[session] &-= 1
    count &-= 1
  }

  /// Empties the set of a session.
  @_noLocks
  mutating func clear(_ session: UInt32) {
    if counts[session] == 0 { return }
    var word = 0
    while word < PortSets.wordsOfSession {
      words[Int(session) &* PortSets.wordsOfSession &+ word] = 0
      word &+= 1
    }
    count &-= Int(counts[session])
    counts[session] = 0
  }
}
