import java.io.FileReader;
import java.io.FileWriter;
import java.io.InputStream;
import java.io.Writer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyPair;
import java.security.KeyPairGenerator;
import java.security.KeyStore;
import java.security.Security;
import java.security.cert.TrustAnchor;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import javax.net.ssl.KeyManagerFactory;
import org.bouncycastle.asn1.pkcs.PKCSObjectIdentifiers;
import org.bouncycastle.asn1.x500.X500NameBuilder;
import org.bouncycastle.asn1.x500.style.BCStyle;
import org.bouncycastle.asn1.x509.Extension;
import org.bouncycastle.asn1.x509.ExtensionsGenerator;
import org.bouncycastle.asn1.x509.GeneralName;
import org.bouncycastle.asn1.x509.GeneralNames;
import org.bouncycastle.cert.X509CertificateHolder;
import org.bouncycastle.cert.jcajce.JcaX509CertificateConverter;
import org.bouncycastle.est.CACertsResponse;
import org.bouncycastle.est.ESTAuth;
import org.bouncycastle.est.ESTException;
import org.bouncycastle.est.ESTService;
import org.bouncycastle.est.EnrollmentResponse;
import org.bouncycastle.est.jcajce.JcaHttpAuthBuilder;
import org.bouncycastle.est.jcajce.JcaJceUtils;
import org.bouncycastle.est.jcajce.JsseESTServiceBuilder;
import org.bouncycastle.jce.provider.BouncyCastleProvider;
import org.bouncycastle.jce.spec.ECNamedCurveGenParameterSpec;
import org.bouncycastle.openssl.PEMParser;
import org.bouncycastle.openssl.jcajce.JcaPEMWriter;
import org.bouncycastle.openssl.jcajce.JcaPKCS8Generator;
import org.bouncycastle.operator.jcajce.JcaContentSignerBuilder;
import org.bouncycastle.pkcs.PKCS10CertificationRequest;
import org.bouncycastle.pkcs.jcajce.JcaPKCS10CertificationRequestBuilder;
import org.bouncycastle.util.Store;

/**
 * Bouncy Castle's EST client as a program: CA certificates, a new key, its certificate.
 *
 * <pre>
 * BcEst --server HOST:PORT [--label L] --trust PEM --key-type TYPE --rdn CN=NAME... [--san DNS:NAME]...
 *       [--keystore P12 --keystore-password-file F] [--user NAME --user-password-file F]
 *       [--reenroll] --ca-out PEM --key-out PEM --cert-out PEM
 * </pre>
 *
 * TYPE is one of igelcert's key types, or ed448. Exit 0: the certificate is written; 3: the server refused,
 * its status and text on standard error; 1: anything else.
 */
public final class BcEst {
    private static final long POLL_LIMIT_MILLIS = 30_000;
    private static final Set<String> FLAGS = Set.of("reenroll");

    private final Map<String, List<String>> options = new HashMap<>();

    public static void main(String[] args) {
        // RFC 5958's version 2 of a private key is beyond OpenSSL 3.0.
        System.setProperty("org.bouncycastle.pkcs8.v1_info_only", "true");
        Security.addProvider(new BouncyCastleProvider());
        try {
            new BcEst(args).run();
        } catch (Throwable thrown) {
            for (Throwable err = thrown; err != null; err = err.getCause()) {
                if (err instanceof ESTException refused && refused.getStatusCode() >= 300) {
                    System.err.println("BcEst: " + refused.getStatusCode() + " " + text(refused));
                    System.exit(3);
                }
            }
            thrown.printStackTrace();
            System.exit(1);
        }
    }

    private BcEst(String[] args) {
        for (int i = 0; i < args.length; i++) {
            String name = args[i].substring(2);
            options.computeIfAbsent(name, key -> new ArrayList<>()).add(FLAGS.contains(name) ? "" : args[++i]);
        }
    }

    private String option(String name) {
        return options.containsKey(name) ? options.get(name).get(0) : null;
    }

    private static String text(ESTException refused) {
        try (InputStream body = refused.getBody()) {
            return body == null ? "" : new String(body.readAllBytes(), StandardCharsets.UTF_8).trim();
        } catch (java.io.IOException err) {
            return "";
        }
    }

    private void run() throws Exception {
        ESTService service = service();
        CACertsResponse authorities = service.getCACerts();
        write("ca-out", ESTService.storeToArray(authorities.getCertificateStore()));

        String type = option("key-type");
        KeyPair pair = generate(type);
        try (JcaPEMWriter writer = new JcaPEMWriter(new FileWriter(option("key-out")))) {
            writer.writeObject(new JcaPKCS8Generator(pair.getPrivate(), null));
        }

        ESTAuth auth = null;
        if (option("user") != null) {
            auth = new JcaHttpAuthBuilder(option("user"), secret("user-password-file")).setProvider("BC").build();
        }
        EnrollmentResponse answer =
                service.simpleEnroll(options.containsKey("reenroll"), request(pair, type), auth);
        long limit = System.currentTimeMillis() + POLL_LIMIT_MILLIS;
        while (!answer.isCompleted()) {
            long wait = answer.getNotBefore() - System.currentTimeMillis();
            if (System.currentTimeMillis() + wait > limit) {
                throw new IllegalStateException("still pending");
            }
            System.out.println("pending");
            Thread.sleep(Math.max(wait, 0));
            answer = service.simpleEnroll(answer);
        }
        Store<X509CertificateHolder> issued = answer.getStore();
        write("cert-out", ESTService.storeToArray(issued));
    }

    private ESTService service() throws Exception {
        Set<TrustAnchor> anchors = new HashSet<>();
        try (PEMParser parser = new PEMParser(new FileReader(option("trust")))) {
            for (Object found = parser.readObject(); found != null; found = parser.readObject()) {
                anchors.add(new TrustAnchor(
                        new JcaX509CertificateConverter().getCertificate((X509CertificateHolder) found), null));
            }
        }
        JsseESTServiceBuilder builder = new JsseESTServiceBuilder(
                option("server"), JcaJceUtils.getCertPathTrustManager(anchors, null));
        builder.withTimeout(15_000);
        if (option("label") != null) {
            builder.withLabel(option("label"));
        }
        if (option("keystore") != null) {
            char[] password = secret("keystore-password-file");
            KeyStore keystore = KeyStore.getInstance("PKCS12");
            try (InputStream file = Files.newInputStream(Path.of(option("keystore")))) {
                keystore.load(file, password);
            }
            KeyManagerFactory factory = KeyManagerFactory.getInstance(KeyManagerFactory.getDefaultAlgorithm());
            factory.init(keystore, password);
            builder.withKeyManagers(factory.getKeyManagers());
        }
        return builder.build();
    }

    private char[] secret(String name) throws Exception {
        return Files.readString(Path.of(option(name))).stripTrailing().toCharArray();
    }

    private static KeyPair generate(String type) throws Exception {
        KeyPairGenerator generator;
        if (type.startsWith("rsa_")) {
            generator = KeyPairGenerator.getInstance("RSA", "BC");
            generator.initialize(Integer.parseInt(type.substring(4)));
        } else if (type.startsWith("ec_")) {
            generator = KeyPairGenerator.getInstance("EC", "BC");
            generator.initialize(new ECNamedCurveGenParameterSpec(type.substring(3)));
        } else {
            generator = KeyPairGenerator.getInstance(type.endsWith("ed25519") ? "Ed25519" : "Ed448", "BC");
        }
        return generator.generateKeyPair();
    }

    private static String algorithm(String type) {
        if (type.startsWith("rsa_")) {
            return "SHA256withRSA";
        }
        if (type.startsWith("ec_")) {
            return type.matches(".*(384).*") ? "SHA384withECDSA"
                    : type.matches(".*(521|512).*") ? "SHA512withECDSA" : "SHA256withECDSA";
        }
        return type.endsWith("ed25519") ? "Ed25519" : "Ed448";
    }

    private PKCS10CertificationRequest request(KeyPair pair, String type) throws Exception {
        X500NameBuilder subject = new X500NameBuilder(BCStyle.INSTANCE);
        for (String rdn : options.getOrDefault("rdn", List.of())) {
            int equals = rdn.indexOf('=');
            subject.addRDN(BCStyle.INSTANCE.attrNameToOID(rdn.substring(0, equals)), rdn.substring(equals + 1));
        }
        JcaPKCS10CertificationRequestBuilder builder =
                new JcaPKCS10CertificationRequestBuilder(subject.build(), pair.getPublic());
        List<GeneralName> names = new ArrayList<>();
        for (String san : options.getOrDefault("san", List.of())) {
            int colon = san.indexOf(':');
            int tag = switch (san.substring(0, colon)) {
                case "email" -> GeneralName.rfc822Name;
                case "DNS" -> GeneralName.dNSName;
                case "URI" -> GeneralName.uniformResourceIdentifier;
                case "IP" -> GeneralName.iPAddress;
                default -> throw new IllegalArgumentException(san);
            };
            names.add(new GeneralName(tag, san.substring(colon + 1)));
        }
        if (!names.isEmpty()) {
            ExtensionsGenerator extensions = new ExtensionsGenerator();
            extensions.addExtension(
                    Extension.subjectAlternativeName, false, new GeneralNames(names.toArray(new GeneralName[0])));
            builder.addAttribute(PKCSObjectIdentifiers.pkcs_9_at_extensionRequest, extensions.generate());
        }
        return builder.build(new JcaContentSignerBuilder(algorithm(type)).setProvider("BC").build(pair.getPrivate()));
    }

    private void write(String name, X509CertificateHolder[] certificates) throws Exception {
        try (Writer file = new FileWriter(option(name)); JcaPEMWriter writer = new JcaPEMWriter(file)) {
            for (X509CertificateHolder certificate : certificates) {
                writer.writeObject(certificate);
            }
        }
    }
}
