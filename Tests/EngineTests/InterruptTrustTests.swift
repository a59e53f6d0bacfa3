import Testing

@testable import MachnetEngine

@Suite struct InterruptTrustTests {
  @Test func isEarnedByPortsAlone() {
    var trust = InterruptTrust()
    #expect(trust.trusted == 0)
    // A doorbell stands for no port.
    trust.told(0)
    #expect(trust.trusted == 0)
    trust.told(0b101)
    #expect(trust.trusted == 0b101)
    // What is none of a port's changes nothing.
    trust.missed(0)
    trust.told(1 << 63)
    #expect(trust.trusted == 0b101)
  }

  /// One that often comes, and often does not, would cost a sleep's whole time each time that it does not.
  @Test func isLostAtOnceAndComesBackSlowly() {
    var trust = InterruptTrust()
    for _ in 0..<1000 { trust.told(0b11) }
    trust.missed(0b01)
    #expect(trust.trusted == 0b10)
    for told in 1...Int(InterruptTrust.toRegain) {
      trust.told(0b01)
      #expect(trust.trusted == (told < Int(InterruptTrust.toRegain) ? 0b10 : 0b11))
    }
    // However often it has failed.
    for _ in 0..<1000 { trust.missed(0b01) }
    for _ in 0...Int(InterruptTrust.toRegain) { trust.told(0b01) }
    #expect(trust.trusted == 0b11)
  }
}
